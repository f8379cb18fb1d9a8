{{/* The image of a pod. Takes (list root image), image being {repository, tag, digest}. */}}
{{- define "certctl.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- if $image.digest -}}{{ $image.repository }}@{{ $image.digest }}
{{- else -}}{{ $image.repository }}:{{ $image.tag | default (include "certctl.appVersion" $root) }}{{- end -}}
{{- end }}

{{/*
The most pods of a service that run side by side: its replicas, or what the autoscaler may make of them.
*/}}
{{- define "certctl.replicas" -}}
{{- if .autoscaling.enabled -}}{{ max (int .autoscaling.maxReplicas) (int .autoscaling.minReplicas) }}{{- else -}}{{ int .replicas }}{{- end -}}
{{- end }}

{{/*
The connections of one pod of a service when there are as many as there may be: its quota over them and the one more that a rolling update
adds. Pods see by themselves how many they are (pkg/pg/share.go), so that scaling changes no pod. Takes (list values component).
*/}}
{{- define "certctl.poolSize" -}}
{{- $values := index . 0 -}}{{- $component := index . 1 -}}
{{- $pods := add1 (int (include "certctl.replicas" $values)) -}}
{{- $size := div (int $values.database.quota) $pods -}}
{{- if lt $size 2 -}}
{{- fail (printf "%s: %d connections (%s.database.quota) are too few for %d replicas and the one more of a rolling update, at 2 each: set %s.database.quota to %d or more and global.database.maxConns to the new sum, or run fewer replicas" $component (int $values.database.quota) $component (sub $pods 1) $component (mul $pods 2)) -}}
{{- end -}}
{{- $size -}}
{{- end }}

{{/* The hash of the content of an existing Secret, as far as Helm can see it. Takes (list root name). */}}
{{- define "certctl.secretHash" -}}
{{- $root := index . 0 -}}
{{- with index . 1 -}}
{{- $secret := lookup "v1" "Secret" $root.Release.Namespace . | default dict -}}
{{- printf "%s %s" . (($secret.data | default dict) | toJson) | sha256sum -}}
{{- end -}}
{{- end }}

{{/* What Postgres must allow: the services' connections, and room for migration, backup and an operator. */}}
{{- define "certctl.maxConnections" -}}
{{- max 100 (add (int .global.database.maxConns) 20) -}}
{{- end }}
