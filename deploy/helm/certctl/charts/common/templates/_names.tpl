{{/* The name of a component's objects: <release>-<component>. Takes (list root component). */}}
{{- define "certctl.name" -}}
{{- printf "%s-%s" (index . 0).Release.Name (index . 1) -}}
{{- end }}

{{/* What selects a component's pods. It is immutable in a Deployment. */}}
{{- define "certctl.selector" -}}
app.kubernetes.io/name: certctl
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The labels of every object of a component. */}}
{{- define "certctl.labels" -}}
{{- $root := index . 0 -}}
{{ include "certctl.selector" . }}
app.kubernetes.io/version: {{ include "certctl.appVersion" $root | quote }}
app.kubernetes.io/part-of: certctl
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with ($root.Values.global).commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The head of an object: name, namespace and labels. Takes (list root component), or (list root component suffix) for <release>-<component>-<suffix>. */}}
{{- define "certctl.metadata" -}}
name: {{ include "certctl.name" . }}{{ if gt (len .) 2 }}-{{ index . 2 }}{{ end }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "certctl.labels" . | nindent 2 }}
{{- end }}
