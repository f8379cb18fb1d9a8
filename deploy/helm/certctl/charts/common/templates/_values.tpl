{{/*
The values of one chart, over the defaults of this version of it. With `helm upgrade --reuse-values` Helm gives a chart the values of
the release before, in which what is new in this version is missing; from here it always comes. Takes (list root chart), where the
umbrella's own name is certctl; answers YAML. A service also takes what global.service says and it does not say itself.
*/}}
{{- define "certctl.values" -}}
{{- $root := index . 0 -}}{{- $chart := index . 1 -}}
{{- $defaults := include "certctl.defaults" $root | fromYaml -}}
{{- $global := $defaults.global -}}
{{- include "certctl.override" (list $global ($root.Values.global | default dict)) -}}
{{- $values := dict -}}
{{- if eq $chart "certctl" -}}
{{- $values = $defaults -}}
{{- else -}}
{{- if not (has $chart (list "agent" "postgresql")) -}}{{- $values = deepCopy $global.service -}}{{- end -}}
{{- include "certctl.override" (list $values (index $defaults $chart)) -}}
{{- end -}}
{{- include "certctl.override" (list $values $root.Values) -}}
{{- $_ := set $values "global" $global -}}
{{- toYaml $values -}}
{{- end }}

{{/* Sets every key of the second map in the first, also where it is false, 0 or empty. Answers nothing. */}}
{{- define "certctl.override" -}}
{{- $into := index . 0 -}}
{{- range $key, $value := index . 1 -}}
{{- if and (kindIs "map" $value) (kindIs "map" (index $into $key)) -}}
{{- include "certctl.override" (list (index $into $key) $value) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $_ := set $into $key $value -}}
{{- end -}}
{{- end -}}
{{- end }}
