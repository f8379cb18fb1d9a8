{{/* Whether this release has the control plane, or is agents alone; "" is no. */}}
{{- define "certctl.controlPlane" -}}
{{- if ne (get (.Values.tags | default dict) "control-plane" | toString) "false" -}}yes{{- end -}}
{{- end }}

{{/*
What the chart makes once, as YAML: what the values say, else what the Secret in the cluster has, else new random bytes. All templates
of a rendering see the same, so it is kept in the values.
*/}}
{{- define "certctl.generated" -}}
{{- if not .Values.generated -}}
{{- $values := include "certctl.values" (list . "certctl") | fromYaml -}}
{{- $given := $values.global.secrets -}}
{{- $there := (lookup "v1" "Secret" .Release.Namespace (include "certctl.name" (list . "secrets"))).data | default dict -}}
{{- $made := dict -}}
{{- range $key, $value := dict "internal-secret" $given.internalSecret "role-secret" $given.roleSecret "encryption-key" $given.encryptionKey "join-token" $given.joinToken -}}
{{- $value = $value | default (get $there $key | b64dec) -}}
{{- if not $value -}}
{{- $value = ternary (randBytes 32) (randAlphaNum 43) (eq $key "encryption-key") -}}
{{- end -}}
{{- $_ := set $made $key $value -}}
{{- end -}}
{{- $_ := set .Values "generated" $made -}}
{{- end -}}
{{- toYaml .Values.generated -}}
{{- end }}

{{/* The URL of the database: what the values say, or the bundled Postgres, whose password stands beside it. */}}
{{- define "certctl.databaseUrl" -}}
{{- $values := index . 1 -}}
{{- if $values.postgresql.enabled -}}
postgres://certctl@{{ include "certctl.name" (list (index . 0) "postgres") }}:5432/certctl?sslmode=disable
{{- else -}}
{{- $values.global.database.url | default $values.server.databaseUrl -}}
{{- end -}}
{{- end }}

{{/* The quotas as the migration sets them in Postgres. Takes the values. */}}
{{- define "certctl.quotas" -}}
inventory={{ int .inventory.database.quota }},issuance={{ int .issuance.database.quota }},renewalscheduler={{ int (index . "renewal-scheduler").database.quota }},asyncpoller={{ int (index . "async-poller").database.quota }},audit={{ int .audit.database.quota }}
{{- end }}

{{/* What contradicts itself across subcharts. */}}
{{- define "certctl.check" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}
{{- $sum := 0 -}}
{{- range list "inventory" "issuance" "renewal-scheduler" "async-poller" "audit" -}}
{{- $sum = add $sum (int (index $values .).database.quota) -}}
{{- end -}}
{{- if ne (int $sum) (int $values.global.database.maxConns) -}}
{{- fail (printf "the connection quotas of the services add up to %d (%s), and global.database.maxConns is %d: change <service>.database.quota or global.database.maxConns so that both are the same" $sum (include "certctl.quotas" $values) (int $values.global.database.maxConns)) -}}
{{- end -}}
{{- $database := $values.global.database -}}
{{- $url := $database.url | default $values.server.databaseUrl -}}
{{- if and $values.postgresql.enabled (eq $database.roles "shared") -}}
{{- fail "global.database.roles=shared is for an external database that lets nobody make roles: the bundled one does, so leave it at separate" -}}
{{- end -}}
{{- if $values.postgresql.enabled -}}
{{- if or $url $database.existingSecret -}}
{{- fail "an external database (server.databaseUrl, global.database.url or global.database.existingSecret) and the bundled one are both on: set postgresql.enabled=false, or leave the external one empty" -}}
{{- end -}}
{{- else if $database.existingSecret -}}
{{- if $url -}}
{{- fail "global.database.existingSecret and a database URL are both set: the URL comes from one of them, so leave the other empty" -}}
{{- end -}}
{{- else -}}
{{- if not $url -}}
{{- fail "postgresql.enabled=false and no database: set server.databaseUrl=postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full, or global.database.existingSecret" -}}
{{- end -}}
{{- if not (regexMatch "^postgres(ql)?://" $url) -}}
{{- fail "server.databaseUrl (global.database.url) is no Postgres URL: it looks like postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full, with special characters in the password percent-encoded" -}}
{{- end -}}
{{- if and $database.url $values.server.databaseUrl (ne $database.url $values.server.databaseUrl) -}}
{{- fail "global.database.url and server.databaseUrl differ: they are two names of one thing, so set only global.database.url" -}}
{{- end -}}
{{- end -}}
{{- $before := get ((lookup "v1" "Secret" $root.Release.Namespace (include "certctl.name" (list $root "database"))).data | default dict) "url" | b64dec -}}
{{- $bundled := printf "@%s:" (include "certctl.name" (list $root "postgres")) -}}
{{- if and $before (ne $values.postgresql.enabled (contains $bundled $before)) -}}
{{- fail "this upgrade would put another database in the place of the one with the data (postgresql.enabled has changed): an upgrade moves no data. Install anew beside, and dump and restore (docs/operator/backup.md, Into another Postgres)" -}}
{{- end -}}
{{- if and $before $values.server.databaseUrl (not $database.url) (ne $before $url) -}}
{{- fail "server.databaseUrl has changed since the last release, and the services would not be restarted for it: set it as global.database.url, whose change restarts them, and server.databaseUrl to the empty string" -}}
{{- end -}}
{{- if gt (len $root.Release.Name) 45 -}}
{{- fail (printf "the release name %s has %d characters, and %s-renewal-scheduler would be too long for a Service: take one of at most 45" $root.Release.Name (len $root.Release.Name) $root.Release.Name) -}}
{{- end -}}
{{- range $key, $_ := $values.global.commonLabels -}}
{{- if hasPrefix "app.kubernetes.io/" $key -}}
{{- fail (printf "global.commonLabels.%s: the labels of app.kubernetes.io/ are the chart's own; take another prefix" $key) -}}
{{- end -}}
{{- end -}}
{{- if and $values.global.metrics.enabled $values.global.networkPolicy.enabled (not $values.global.networkPolicy.metricsFrom) -}}
{{- fail "global.metrics.enabled=true and nobody may scrape: name the scraper in global.networkPolicy.metricsFrom, for example --set global.networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name=monitoring" -}}
{{- end -}}
{{- if and $values.server.tls.existingSecret (ne $values.server.tls.existingSecret $values.global.tls.existingSecret) $values.agent.enabled (not $values.agent.serverCA) -}}
{{- fail (printf "server.tls.existingSecret=%s: the agents have to trust that certificate, too. Set global.tls.existingSecret=%s in its place, which tells the gateway and the agents; or agent.serverCA to its CA" $values.server.tls.existingSecret $values.server.tls.existingSecret) -}}
{{- end -}}
{{- if and (or $values.monitoring.serviceMonitor.enabled $values.monitoring.prometheusRule.enabled) (not $values.global.metrics.enabled) -}}
{{- fail "monitoring.serviceMonitor or monitoring.prometheusRule is enabled, and nothing serves metrics: set global.metrics.enabled=true" -}}
{{- end -}}
{{- if and (eq $values.server.auth.type "none") (not $values.global.networkPolicy.enabled) (not $values.server.allowFrom) -}}
{{- fail "server.auth.type=none makes everybody who reaches the gateway an admin, and global.networkPolicy.enabled=false lets everybody reach it: keep the policies on and name the pods of your proxy in server.allowFrom; if something else closes the port off, say so by setting server.allowFrom all the same" -}}
{{- end -}}
{{- end }}

{{/* What a release of agents alone has to be told. */}}
{{- define "certctl.checkAgents" -}}
{{- if .postgresql.enabled -}}
{{- fail "a release of agents alone has no database: set postgresql.enabled=false" -}}
{{- end -}}
{{- if not .agent.serverUrl -}}
{{- fail "a release of agents alone needs to know its gateway: set agent.serverUrl=https://HOST:8443" -}}
{{- end -}}
{{- if not (or .global.secrets.joinToken .global.secrets.existingSecret) -}}
{{- fail "a release of agents alone needs a join token of the control plane: set global.secrets.joinToken (certctl agents join-token makes one), or global.secrets.existingSecret to a Secret with the key join-token" -}}
{{- end -}}
{{- if not (or .agent.serverCA .global.tls.existingSecret) -}}
{{- fail "a release of agents alone needs the CA of its gateway: add --set-file agent.serverCA=ca.crt" -}}
{{- end -}}
{{- end }}
