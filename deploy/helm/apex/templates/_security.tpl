{{/*
Certificates and the token. Roles are the components' names, as the services know them: the certificate of an actor carries
apex-actor, that of the people who ask (helm test) apex-operator. Who listens carries "apex" as well, and only they: nobody
else can pass for a server. Templates take (dict "root" $ "component" "actor").
*/}}

{{- define "apex.isServer" -}}
{{- if has . (list "replay" "learner" "relay") }}true{{ end -}}
{{- end -}}

{{/* Whether a component shows a certificate: servers always, clients with mtls. */}}
{{- define "apex.showsCertificate" -}}
{{- if or (eq .root.Values.security.mode "mtls") (include "apex.isServer" .component) }}true{{ end -}}
{{- end -}}

{{- define "apex.certificateRole" -}}
{{- eq . "test" | ternary "operator" . -}}
{{- end -}}

{{/* Name of the secret with ca.crt, tls.crt and tls.key. Who shows none takes ca.crt, and nothing else, of the learner's. */}}
{{- define "apex.certificateSecret" -}}
{{- $role := include "apex.showsCertificate" . | empty | ternary "learner" (include "apex.certificateRole" .component) -}}
{{- if .root.Values.security.certManager.issuer -}}
{{- printf "%s-%s-tls" (include "apex.fullname" .root) $role -}}
{{- else -}}
{{- get .root.Values.security.secrets $role -}}
{{- end -}}
{{- end -}}

{{- define "apex.securityFields" -}}
{{- $fields := dict -}}
{{- $security := .root.Values.security -}}
{{- if ne $security.mode "none" -}}
{{- $_ := set $fields "mode" $security.mode -}}
{{- $_ := set $fields "ca_file" "/etc/apex-tls/ca.crt" -}}
{{- if include "apex.showsCertificate" . -}}
{{- $_ := set $fields "certificate_file" "/etc/apex-tls/tls.crt" -}}
{{- $_ := set $fields "key_file" "/etc/apex-tls/tls.key" -}}
{{- end -}}
{{- end -}}
{{- if $security.tokenSecret -}}
{{- $_ := set $fields "token_file" "/etc/apex-token/token" -}}
{{- end -}}
{{- toJson $fields -}}
{{- end -}}

{{/* Options of a service. What a file of one's own says is taken back: its paths are not those of the pod. */}}
{{- define "apex.securityArguments" -}}
{{- $fields := include "apex.securityFields" . | fromJson -}}
{{- if hasKey (include "apex.configData" .root | fromJson) "security" -}}
{{- $fields = merge $fields (dict "mode" "none" "ca_file" "" "certificate_file" "" "key_file" "" "token_file" "" "server_name" "apex") -}}
{{- end -}}
{{- range $name, $value := $fields }}
- --security.{{ replace "_" "-" $name }}={{ $value }}
{{- end }}
{{- end -}}

{{- define "apex.securityMounts" -}}
{{- if ne .root.Values.security.mode "none" }}
- {name: tls, mountPath: /etc/apex-tls, readOnly: true}
{{- end }}
{{- if .root.Values.security.tokenSecret }}
- {name: token, mountPath: /etc/apex-token, readOnly: true}
{{- end }}
{{- end -}}

{{- define "apex.securityVolumes" -}}
{{- if ne .root.Values.security.mode "none" }}
- name: tls
  secret:
    secretName: {{ include "apex.certificateSecret" . }}
    defaultMode: 288
    {{- if not (include "apex.showsCertificate" .) }}
    items: [{key: ca.crt, path: ca.crt}]
    {{- end }}
{{- end }}
{{- with .root.Values.security.tokenSecret }}
- name: token
  secret: {secretName: {{ . }}, defaultMode: 288, items: [{key: token, path: token}]}
{{- end }}
{{- end -}}

{{/* Components that show a certificate in this release, as a JSON list; "test" stands for the operator. */}}
{{- define "apex.certificateHolders" -}}
{{- $holders := list "replay" "learner" -}}
{{- if gt (int .Values.relay.replicas) 0 }}{{ $holders = append $holders "relay" }}{{ end -}}
{{- if eq .Values.security.mode "mtls" -}}
{{- $holders = concat $holders (list "actor" "test") -}}
{{- if .Values.evaluator.enabled }}{{ $holders = append $holders "evaluator" }}{{ end -}}
{{- end -}}
{{- toJson $holders -}}
{{- end -}}

{{- define "apex.validateSecurity" -}}
{{- $security := .Values.security -}}
{{- if ne $security.mode "none" -}}
{{- if $security.certManager.issuer -}}
{{- if not (.Capabilities.APIVersions.Has "cert-manager.io/v1") -}}
{{- fail "security.certManager.issuer is set, but the cluster has no cert-manager.io/v1: install cert-manager, or name secrets in security.secrets. Without a cluster: helm template --api-versions cert-manager.io/v1" -}}
{{- end -}}
{{- else -}}
{{- range include "apex.certificateHolders" . | fromJsonArray -}}
{{- $role := include "apex.certificateRole" . -}}
{{- if not (get $security.secrets $role) -}}
{{- fail (printf "security.mode is %s, so security.secrets.%s must name a secret with ca.crt, tls.crt and tls.key; or set security.certManager.issuer" $security.mode $role) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- else if $security.certManager.issuer -}}
{{- fail "security.certManager.issuer is set, but security.mode is none: set security.mode to tls or mtls" -}}
{{- end -}}
{{- end -}}
