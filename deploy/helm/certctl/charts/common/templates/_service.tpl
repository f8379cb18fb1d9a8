{{/*
One service of the control plane: ServiceAccount, Service, Deployment, and what scales and guards it. Takes a map:
  root       the context of the subchart
  values     its values, from certctl.values
  component  its name in Kubernetes
  service    its name for `certctl serve --service`
  env        more environment, a map
  secrets    environment variables from keys of the Secret <release>-secrets: a map of variable to key
*/}}
{{- define "certctl.service" -}}
{{- $root := .root -}}{{- $values := .values -}}{{- $component := .component -}}
{{- /* A share that cannot work is told before anything is installed. */ -}}
{{- $_ := include "certctl.poolSize" (list $values $component) -}}
{{- $env := merge (deepCopy .env) (include "certctl.peers" $root | fromYaml) (dict
  "CERTCTL_GRPC_LISTEN_ADDR" ":9443"
  "CERTCTL_HEALTH_LISTEN_ADDR" ":9444"
  "CERTCTL_DATABASE_ROLES" $values.global.database.roles
  "CERTCTL_DATABASE_QUOTA" (int $values.database.quota)
) -}}
{{- $keys := merge (deepCopy .secrets) (dict "CERTCTL_INTERNAL_SECRET" "internal-secret" "CERTCTL_DATABASE_ROLE_SECRET" "role-secret") -}}
{{- $sources := list
  (dict "secret" (dict "name" (include "certctl.secretsName" (list $root $values)) "items" (include "certctl.items" $keys | fromYamlArray)))
  (dict "secret" (dict "name" (include "certctl.databaseSecretName" (list $root $values)) "items" (list (dict "key" "url" "path" "url"))))
-}}
{{- $sources = concat $sources (include "certctl.databaseCA" $values | fromYamlArray) -}}
{{- $files := merge (deepCopy $keys) (dict "CERTCTL_DATABASE_URL" "url") -}}
{{- include "certctl.serviceAccount" (list $root $values $component) }}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "certctl.metadata" (list $root $component) | nindent 2 }}
spec:
  # Headless: callers know every replica and spread their calls. An address that is not ready yet harms nobody, and a name
  # that does not resolve would be asked for again only after a while.
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    {{- include "certctl.selector" (list $root $component) | nindent 4 }}
  ports:
    - name: grpc
      port: 9443
      targetPort: grpc
      appProtocol: https
---
{{ include "certctl.deployment" (dict "root" $root "values" $values "component" $component
  "args" (list "serve" "--service" .service) "moreEnv" (ternary (include "certctl.databasePassword" $values | fromYamlArray) list (eq $values.global.database.roles "shared")) "env" $env "secrets" $files "sources" $sources
  "hashes" (list (toJson $values.global.secrets) (toJson $values.global.database) (include "certctl.secretHash" (list $root $values.global.secrets.existingSecret)) (include "certctl.secretHash" (list $root $values.global.database.existingSecret)))
  "ports" (dict "grpc" 9443 "health" 9444)
  "probes" (dict
    "startupProbe" (dict "grpc" (dict "port" 9444 "service" "liveness") "periodSeconds" 1 "failureThreshold" 60)
    "livenessProbe" (dict "grpc" (dict "port" 9444 "service" "liveness") "periodSeconds" 10 "timeoutSeconds" 5 "failureThreshold" 3)
    "readinessProbe" (dict "grpc" (dict "port" 9444) "periodSeconds" 5 "timeoutSeconds" 5 "failureThreshold" 2))
) }}
{{- end }}

{{/* The items of a volume for keys of a Secret: each key is the file of its name. */}}
{{- define "certctl.items" -}}
{{- range $variable, $key := . }}
- key: {{ $key }}
  path: {{ $key }}
{{- end }}
{{- end }}

{{/* Where the services are. */}}
{{- define "certctl.peers" -}}
CERTCTL_INVENTORY_ADDR: {{ include "certctl.name" (list . "inventory") }}:9443
CERTCTL_ISSUANCE_ADDR: {{ include "certctl.name" (list . "issuance") }}:9443
CERTCTL_RENEWALSCHEDULER_ADDR: {{ include "certctl.name" (list . "renewal-scheduler") }}:9443
CERTCTL_ASYNCPOLLER_ADDR: {{ include "certctl.name" (list . "async-poller") }}:9443
CERTCTL_AUDIT_ADDR: {{ include "certctl.name" (list . "audit") }}:9443
{{- end }}

{{/*
A Deployment with its autoscaler and disruption budget. Takes a map: root, values, component, args, env, secrets (variable to file),
moreEnv (a list as in a container), sources (of the projected volume with those files), hashes (of what pods must be restarted for), ports, probes; and mounts and
volumes, if there are more.
*/}}
{{- define "certctl.deployment" -}}
{{- $root := .root -}}{{- $values := .values -}}{{- $component := .component -}}
{{- if gt (add (int $values.preStopSeconds) 15) (int $values.terminationGracePeriodSeconds) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds (%d) is less than %s.preStopSeconds (%d) and the 15 seconds of a stop: connections would be cut" $component (int $values.terminationGracePeriodSeconds) $component (int $values.preStopSeconds)) -}}
{{- end -}}
{{- $env := merge (deepCopy .env) (dict "CERTCTL_DATA_DIR" "/var/lib/certctl/data" "CERTCTL_LOG_LEVEL" $values.logLevel "CERTCTL_LOG_FORMAT" "json") -}}
{{- $ports := deepCopy .ports -}}
{{- if $values.global.metrics.enabled -}}
{{- $_ := set $env "CERTCTL_METRICS_LISTEN_ADDR" ":9090" -}}{{- $_ := set $ports "metrics" 9090 -}}
{{- end -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "certctl.metadata" (list $root $component) | nindent 2 }}
spec:
  {{- if not $values.autoscaling.enabled }}
  replicas: {{ int $values.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  strategy:
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 0
  selector:
    matchLabels:
      {{- include "certctl.selector" (list $root $component) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "certctl.labels" (list $root $component) | nindent 8 }}
        {{- if $values.global.metrics.enabled }}
        certctl.io/metrics: "true"
        {{- end }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        checksum/secrets: {{ join " " .hashes | sha256sum }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "certctl.podHead" (list $root $values $component) | nindent 6 }}
      topologySpreadConstraints:
        {{- include "certctl.spread" (list $root $values $component) | nindent 8 }}
      terminationGracePeriodSeconds: {{ int $values.terminationGracePeriodSeconds }}
      securityContext:
        {{- include "certctl.podSecurity" (list $values $values.podSecurityContext) | nindent 8 }}
      containers:
        - name: {{ $component }}
          image: {{ include "certctl.image" (list $root $values.global.image) }}
          imagePullPolicy: {{ $values.global.image.pullPolicy }}
          args: {{ toJson .args }}
          env:
            {{- include "certctl.env" (list $root $values $env .secrets) | nindent 12 }}
            {{- with .moreEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            {{- range $name, $port := $ports }}
            - name: {{ $name }}
              containerPort: {{ int $port }}
            {{- end }}
          {{- toYaml .probes | nindent 10 }}
          {{- if $values.preStopSeconds }}
          lifecycle:
            preStop:
              sleep:
                seconds: {{ int $values.preStopSeconds }}
          {{- end }}
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          securityContext:
            {{- toYaml $values.containerSecurityContext | nindent 12 }}
          volumeMounts:
            - name: data
              mountPath: /var/lib/certctl
            - name: secrets
              mountPath: /etc/certctl/secrets
              readOnly: true
            {{- with .mounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
            {{- with $values.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: data
          emptyDir:
            sizeLimit: 64Mi
        - name: secrets
          projected:
            defaultMode: 0440
            sources:
              {{- toYaml .sources | nindent 14 }}
        {{- with .volumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with $values.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- if $values.autoscaling.enabled }}
---
{{ include "certctl.autoscaler" . }}
{{- end }}
{{- if and $values.podDisruptionBudget.enabled (or $values.autoscaling.enabled (gt (int $values.replicas) 1)) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "certctl.metadata" (list $root $component) | nindent 2 }}
spec:
  maxUnavailable: {{ $values.podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "certctl.selector" (list $root $component) | nindent 6 }}
{{- end }}
{{- end }}

{{/* The HorizontalPodAutoscaler of a Deployment. */}}
{{- define "certctl.autoscaler" -}}
{{- $scaling := .values.autoscaling -}}
{{- if not (or $scaling.targetCPUUtilizationPercentage $scaling.targetQueueAgeSeconds) -}}
{{- fail (printf "%s.autoscaling.enabled has nothing to scale by: set %s.autoscaling.targetCPUUtilizationPercentage or targetQueueAgeSeconds" .component .component) -}}
{{- end -}}
{{- if and $scaling.targetQueueAgeSeconds (or (eq .component "server") (not .values.global.metrics.enabled)) -}}
{{- fail (printf "%s.autoscaling.targetQueueAgeSeconds has no metric to go by: the gateway has no queue, and the services show theirs with global.metrics.enabled=true" .component) -}}
{{- end -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "%s.autoscaling.minReplicas (%d) is greater than maxReplicas (%d)" .component (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "certctl.metadata" (list .root .component) | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "certctl.name" (list .root .component) }}
  minReplicas: {{ int $scaling.minReplicas }}
  maxReplicas: {{ int $scaling.maxReplicas }}
  metrics:
    {{- if $scaling.targetCPUUtilizationPercentage }}
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ int $scaling.targetCPUUtilizationPercentage }}
    {{- end }}
    {{- if $scaling.targetQueueAgeSeconds }}
    - type: Pods
      pods:
        metric:
          name: certctl_lease_oldest_due_seconds
        target:
          type: AverageValue
          averageValue: {{ int $scaling.targetQueueAgeSeconds | quote }}
    {{- end }}
  {{- with $scaling.behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
