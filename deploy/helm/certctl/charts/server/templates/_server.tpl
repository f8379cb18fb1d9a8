{{/* What is missing or contradicts itself. */}}
{{- define "server.check" -}}
{{- $values := index . 1 -}}
{{- $type := $values.auth.type -}}
{{- if not (has $type (list "api-key" "none")) -}}
{{- fail (printf "server.auth.type=%s: certctl checks API keys or nothing. For JWT, OIDC or SAML put an authenticating proxy in front and set server.auth.type=none behind it (docs/operator/auth-proxy.md)" $type) -}}
{{- end -}}
{{- if and (eq $type "api-key") (not $values.auth.apiKey) (not $values.auth.existingSecret) -}}
{{- fail "server.auth.apiKey is not set: add --set server.auth.apiKey=\"$(openssl rand -base64 32)\", or name a Secret with the key api-keys in server.auth.existingSecret" -}}
{{- end -}}
{{- if and $values.auth.apiKey $values.auth.existingSecret -}}
{{- fail "server.auth.apiKey and server.auth.existingSecret are both set: the keys come from one of them, so leave the other empty" -}}
{{- end -}}
{{- if and (eq $type "none") $values.auth.apiKey -}}
{{- fail "server.auth.type=none with server.auth.apiKey: the key would protect nothing. Leave server.auth.apiKey empty, or set server.auth.type=api-key" -}}
{{- end -}}
{{- $tls := $values.tls -}}
{{- if and $tls.certManager.enabled (or $tls.existingSecret $values.global.tls.existingSecret) -}}
{{- fail "server.tls.certManager.enabled and an existing TLS Secret are both set: the gateway has one certificate, so leave one of them out" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.issuerRef.name) -}}
{{- fail "server.tls.certManager.issuerRef.name is not set: name the Issuer or ClusterIssuer that makes the gateway's certificate" -}}
{{- end -}}
{{- if and $values.ingress.enabled (not $values.ingress.host) -}}
{{- fail "server.ingress.host is not set: an Ingress without a host would take every host of its controller" -}}
{{- end -}}
{{- if and (eq $type "none") (or $values.ingress.enabled (ne $values.service.type "ClusterIP")) -}}
{{- fail "server.auth.type=none makes everybody who reaches the gateway an admin, and an Ingress, LoadBalancer or NodePort of its own lets them past the proxy: leave server.ingress.enabled=false and server.service.type=ClusterIP, and expose the proxy" -}}
{{- end -}}
{{- end }}

{{/* The Secret with a certificate that the gateway is given; empty: it makes its own. */}}
{{- define "server.tlsSecret" -}}
{{- $values := index . 1 -}}
{{- if $values.tls.certManager.enabled -}}{{ include "certctl.name" (list (index . 0) "server") }}-tls
{{- else -}}{{ $values.tls.existingSecret | default $values.global.tls.existingSecret }}{{- end -}}
{{- end }}

{{- define "server.authSecret" -}}
{{- (index . 1).auth.existingSecret | default (printf "%s-auth" (include "certctl.name" (list (index . 0) "server"))) -}}
{{- end }}

{{/* The names of the gateway's certificate: every name of its Service, and what the values add. */}}
{{- define "server.names" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}
{{- if and $values.tls.certManager.enabled $values.tls.certManager.dnsNames -}}
{{- join "," $values.tls.certManager.dnsNames -}}
{{- else -}}
{{- $service := include "certctl.name" (list $root "server") -}}
{{- $names := list $service (printf "%s.%s" $service $root.Release.Namespace) (printf "%s.%s.svc" $service $root.Release.Namespace) (printf "%s.%s.svc.cluster.local" $service $root.Release.Namespace) -}}
{{- if $values.ingress.enabled -}}{{- $names = append $names $values.ingress.host -}}{{- end -}}
{{- concat $names $values.tls.names | uniq | join "," -}}
{{- end -}}
{{- end }}

{{/* The key of an admin in a list of API keys: the first that has no name, or that role; else the first. */}}
{{- define "server.adminKey" -}}
{{- $keys := splitList "," . -}}
{{- $admin := first $keys -}}
{{- range $key := reverse $keys -}}
{{- $parts := splitList ":" $key -}}
{{- if or (lt (len $parts) 3) (eq (index $parts 1) "admin") -}}{{- $admin = $key -}}{{- end -}}
{{- end -}}
{{- splitList ":" $admin | last | trim -}}
{{- end }}

{{/*
The CA that the gateway signs its own certificate with. It is made once: agents and users trust it. The certificate alone is in a
ConfigMap, for agents and users; the key is for the gateway. Its name must not be that of the certificates which it signs ("certctl"): OpenSSL
takes a certificate whose subject is its issuer for self-signed.
*/}}
{{- define "server.authority" -}}
{{- $root := index . 0 -}}
{{- $name := include "certctl.name" (list $root "server") -}}
{{- $there := (lookup "v1" "Secret" $root.Release.Namespace (printf "%s-ca" $name)).data | default dict -}}
{{- $cert := get $there "ca.crt" | b64dec -}}{{- $key := get $there "ca.key" | b64dec -}}
{{- if not (and $cert $key) -}}
{{- $made := genCAWithKey (printf "certctl CA of %s in %s" $root.Release.Name $root.Release.Namespace) 3650 (genPrivateKey "ecdsa") -}}
{{- $cert = $made.Cert -}}{{- $key = $made.Key -}}
{{- end -}}
apiVersion: v1
kind: Secret
metadata:
  {{- include "certctl.metadata" (list $root "server" "ca") | nindent 2 }}
  annotations:
    helm.sh/resource-policy: keep
stringData:
  ca.crt: {{ $cert | quote }}
  ca.key: {{ $key | quote }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "certctl.metadata" (list $root "server" "ca") | nindent 2 }}
data:
  ca.crt: {{ $cert | quote }}
{{- end }}
