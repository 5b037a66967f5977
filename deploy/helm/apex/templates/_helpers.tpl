{{/* Names, labels, addresses. Templates with a component take (dict "root" $ "component" "actor"). */}}

{{- define "apex.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.Release.Name | trunc 35 | trimSuffix "-") .Chart.Name -}}
{{- end -}}
{{- end -}}

{{- define "apex.name" -}}
{{- printf "%s-%s" (include "apex.fullname" .root) .component -}}
{{- end -}}

{{- define "apex.releaseLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Selectors cannot be changed later: no version, nothing of the user's. */}}
{{- define "apex.selectorLabels" -}}
{{ include "apex.releaseLabels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "apex.labels" -}}
{{ include "apex.selectorLabels" . }}
app.kubernetes.io/part-of: apex
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "apex.metadata" -}}
name: {{ include "apex.name" . }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "apex.labels" . | nindent 2 }}
{{- end -}}

{{/* Whose image a component runs: evaluators are actors that insert nothing; a relay needs no torch. */}}
{{- define "apex.image" -}}
{{- $owner := get (dict "evaluator" "actor" "relay" "replay" "test" "actor") .component | default .component -}}
{{- $image := (get .root.Values $owner).image -}}
{{- $repository := list .root.Values.image.registry $image.repository | compact | join "/" -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (coalesce $image.tag .root.Values.image.tag .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Ports are constants, so that policies, probes and monitors agree without being told. */}}
{{- define "apex.port" -}}
{{- get (dict "replay" "50051" "learner" "50061" "relay" "50071" "metrics" "9090") . -}}
{{- end -}}

{{- define "apex.learnerAddress" -}}
{{- printf "%s.%s.svc.%s:%s" (include "apex.name" (dict "root" . "component" "learner")) .Release.Namespace .Values.clusterDomain (include "apex.port" "learner") -}}
{{- end -}}

{{/* HOST:PORT of each pod of a StatefulSet, as a JSON list. */}}
{{- define "apex.podAddresses" -}}
{{- $name := include "apex.name" . -}}
{{- $suffix := printf "%s.%s.svc.%s:%s" $name .root.Release.Namespace .root.Values.clusterDomain (include "apex.port" .component) -}}
{{- $addresses := list -}}
{{- range $i := until (int .count) -}}
{{- $addresses = append $addresses (printf "%s-%d.%s" $name $i $suffix) -}}
{{- end -}}
{{- toJson $addresses -}}
{{- end -}}

{{- define "apex.replayAddresses" -}}
{{- include "apex.podAddresses" (dict "root" . "component" "replay" "count" .Values.replay.shards) -}}
{{- end -}}

{{- define "apex.relayAddresses" -}}
{{- include "apex.podAddresses" (dict "root" . "component" "relay" "count" .Values.relay.replicas) -}}
{{- end -}}

{{/* The replicas line of the actors, or nothing. On upgrades the live number is read back, also if it is 0. */}}
{{- define "apex.actorReplicas" -}}
{{- $actor := .Values.actor -}}
{{- if ne $actor.replicasPolicy "external" -}}
{{- $count := $actor.replicas -}}
{{- if eq $actor.replicasPolicy "initial" -}}
{{- with lookup "apps/v1" "Deployment" .Release.Namespace (include "apex.name" (dict "root" . "component" "actor")) -}}
{{- $count = .spec.replicas -}}
{{- end -}}
{{- end -}}
replicas: {{ int $count }}
{{- end -}}
{{- end -}}

{{/* Bytes of a quantity such as 2Gi, 500M or 1073741824; 0 if it is none of these. */}}
{{- define "apex.bytes" -}}
{{- $text := toString . -}}
{{- $units := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- if and $number (not $unit) -}}
{{- float64 $number | int64 -}}
{{- else if and $number (hasKey $units $unit) -}}
{{- mulf (float64 $number) (get $units $unit) | int64 -}}
{{- else -}}
0
{{- end -}}
{{- end -}}
