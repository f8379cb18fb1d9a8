{{/*
The head of a pod: what every pod of the installation has. Takes (list root values component).
*/}}
{{- define "certctl.podHead" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}{{- $component := index . 2 -}}
serviceAccountName: {{ include "certctl.name" (list $root $component) }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Spread over nodes: what the values say, or by host name where that is possible. Takes (list root values component). */}}
{{- define "certctl.spread" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}{{- $component := index . 2 -}}
{{- $selector := dict "matchLabels" (include "certctl.selector" (list $root $component) | fromYaml) -}}
{{- $constraints := $values.topologySpreadConstraints | default (list (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway")) -}}
{{- range $constraints }}
- {{- toYaml (merge (deepCopy .) (dict "labelSelector" $selector)) | nindent 2 }}
{{- end }}
{{- end }}

{{/*
The environment of a process: plain settings from a map, secrets as files under /etc/certctl/secrets, and what the operator adds.
Takes (list root values env secrets): secrets is a map of variable to file.
*/}}
{{- define "certctl.env" -}}
{{- $values := index . 1 -}}
{{- range $name, $value := index . 2 }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- range $name, $file := index . 3 }}
- name: {{ $name }}_FILE
  value: /etc/certctl/secrets/{{ $file }}
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* ServiceAccount without a token. Takes (list root values component). */}}
{{- define "certctl.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "certctl.metadata" (list (index . 0) (index . 2)) | nindent 2 }}
  {{- with ((index . 1).serviceAccount).annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}

{{/* The name of the Secret with what the chart makes once, and the one with the database's URL. */}}
{{- define "certctl.secretsName" -}}
{{- $values := index . 1 -}}
{{- $values.global.secrets.existingSecret | default (include "certctl.name" (list (index . 0) "secrets")) -}}
{{- end }}
{{- define "certctl.databaseSecretName" -}}
{{- $values := index . 1 -}}
{{- $values.global.database.existingSecret | default (include "certctl.name" (list (index . 0) "database")) -}}
{{- end }}

{{/* The CA of an external Postgres, as a source of the volume of secrets; a list of none or one. */}}
{{- define "certctl.databaseCA" -}}
{{- with .global.database.caConfigMap -}}
- configMap:
    name: {{ . }}
    items: [{key: ca.crt, path: database-ca.crt}]
{{- else -}}
[]
{{- end -}}
{{- end }}

{{/* The security context of a pod, without ids where the cluster gives them. Takes (list values context). */}}
{{- define "certctl.podSecurity" -}}
{{- $context := index . 1 -}}
{{- if not (index . 0).global.fixedIds -}}{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" -}}{{- end -}}
{{- toYaml $context -}}
{{- end }}

{{/* Where the pods of jobs are scheduled: where services are. Takes the values of the umbrella, answers values for certctl.podHead. */}}
{{- define "certctl.jobScheduling" -}}
{{- pick .global.service "nodeSelector" "tolerations" "priorityClassName" | merge (dict "global" (pick .global "imagePullSecrets")) | toYaml -}}
{{- end }}

{{/* The password beside the URL of an external Postgres, if there is one; a list of none or one variable. */}}
{{- define "certctl.databasePassword" -}}
{{- with .global.database.existingSecret -}}
- name: CERTCTL_DATABASE_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: password
      optional: true
{{- else -}}
[]
{{- end -}}
{{- end }}
