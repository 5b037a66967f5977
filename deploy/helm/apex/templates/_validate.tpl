{{/* What the schema cannot see. Every message says what to write instead. */}}

{{- define "apex.validate" -}}
{{- include "apex.validateConfig" . -}}
{{- include "apex.validateImages" . -}}
{{- include "apex.validateSecurity" . -}}
{{- if hasKey .Values.learner "replicas" -}}
{{- fail "learner.replicas cannot be set: a run has exactly one learner. For another experiment install another release; for faster updates give the learner a larger GPU" -}}
{{- end -}}
{{- if hasKey .Values.replay "replicas" -}}
{{- fail "replay.replicas cannot be set: the number of shards is replay.shards, because actors and learner must be told their addresses" -}}
{{- end -}}
{{- if and (gt (int .Values.replay.shards) 1) (eq (dig "replay" "selector" "proportional" (include "apex.configData" . | fromJson)) "rank_based") -}}
{{- fail (printf "replay.shards is %d, must be 1 with the experiment's replay.selector rank_based: ranks are of one table" (int .Values.replay.shards)) -}}
{{- end -}}
{{- if and .Values.replay.persistence.enabled (ne (dig "replay" "remover" "fifo" (include "apex.configData" . | fromJson)) "fifo") -}}
{{- fail "replay.persistence.enabled is true, must be false with the experiment's replay.remover prioritized: a journal gives back only what left first in, first out" -}}
{{- end -}}
{{- include "apex.validateAutoscaling" . -}}
{{- $operator := .Capabilities.APIVersions.Has "monitoring.coreos.com/v1" -}}
{{- range $name := list "podMonitor" "rules" -}}
{{- if and (get $.Values.monitoring $name).enabled (not $operator) -}}
{{- fail (printf "monitoring.%s.enabled is true, but the cluster has no monitoring.coreos.com/v1: install the Prometheus operator, or set it to false. Without a cluster: helm template --api-versions monitoring.coreos.com/v1" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "apex.validateConfig" -}}
{{- if kindIs "string" .Values.config -}}
{{- if not (trim .Values.config) -}}
{{- fail "config is empty: give a file, --set-file config=my.yaml, or a preset, --set config.preset=pong_small" -}}
{{- end -}}
{{- else -}}
{{- $names := list -}}
{{- range $path, $_ := .Files.Glob "configs/*.yaml" -}}
{{- $names = append $names (base $path | trimSuffix ".yaml") -}}
{{- end -}}
{{- if not (has .Values.config.preset $names) -}}
{{- fail (printf "config.preset is %q, must be one of %s; a file of your own: --set-file config=my.yaml" .Values.config.preset (sortAlpha $names | join ", ")) -}}
{{- end -}}
{{- $owned := dict
  "replay.addresses" "replay.shards" "replay.listen" "" "replay.journal_directory" "replay.persistence.enabled" "replay.metrics_port" ""
  "actor.parameter_addresses" "relay.replicas" "actor.metrics_port" ""
  "learner.address" "" "learner.listen" "" "learner.device" "learner.gpu.enabled" "learner.metrics_port" ""
  "relay.upstream" "" "relay.listen" "" "relay.metrics_port" "" "evaluator.metrics_port" "" -}}
{{- range $section, $fields := .Values.config.set -}}
{{- if kindIs "map" $fields -}}
{{- range $field, $_ := $fields -}}
{{- $path := printf "%s.%s" $section $field -}}
{{- if hasKey $owned $path -}}
{{- $instead := get $owned $path -}}
{{- fail (printf "config.set.%s cannot be set: %s" $path ($instead | empty | ternary "the chart decides it" (printf "it follows from the value %s, set that" $instead))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $data := include "apex.configData" . | fromJson -}}
{{- with get $data "Error" -}}
{{- fail (printf "config is not valid YAML: %s" .) -}}
{{- end -}}
{{- if not (dig "algorithm" "name" "" $data) -}}
{{- fail "config has no algorithm.name; it must at least hold algorithm: {name: apex_dqn}" -}}
{{- end -}}
{{- if not (regexMatch "^[A-Za-z0-9_][A-Za-z0-9_.-]*$" (include "apex.run" .)) -}}
{{- fail (printf "the run's name is %q, must be of letters, digits, '_', '-' and '.': set learner.run" (include "apex.run" .)) -}}
{{- end -}}
{{- end -}}

{{- define "apex.validateAutoscaling" -}}
{{- $autoscaling := .Values.actor.autoscaling -}}
{{- if $autoscaling.enabled -}}
{{- if ne .Values.actor.replicasPolicy "external" -}}
{{- fail (printf "actor.autoscaling.enabled is true, and actor.replicasPolicy %s: set that to external, or upgrades and the autoscaler would take turns" .Values.actor.replicasPolicy) -}}
{{- end -}}
{{- if lt (int $autoscaling.maxReplicas) (int $autoscaling.minReplicas) -}}
{{- fail (printf "actor.autoscaling.maxReplicas is %d, must be at least minReplicas, %d" (int $autoscaling.maxReplicas) (int $autoscaling.minReplicas)) -}}
{{- end -}}
{{- if gt (dig "replay" "samples_per_insert" 0 (include "apex.configData" . | fromJson) | float64) 0.0 -}}
{{- fail "actor.autoscaling.enabled is true, but the experiment's limiter holds the ratio already: --set config.set.replay.samples_per_insert=0, or no autoscaling" -}}
{{- end -}}
{{- if not (.Capabilities.APIVersions.Has "keda.sh/v1alpha1") -}}
{{- fail "actor.autoscaling.enabled is true, but the cluster has no keda.sh/v1alpha1: install KEDA, or set it to false. Without a cluster: helm template --api-versions keda.sh/v1alpha1" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "apex.validateImages" -}}
{{- range $tag := list .Values.image.tag .Values.actor.image.tag .Values.replay.image.tag .Values.learner.image.tag -}}
{{- if eq $tag "latest" -}}
{{- fail "an image's tag is latest: pods that start later would run another version than the others. Write a version, or a digest" -}}
{{- end -}}
{{- end -}}
{{- end -}}
