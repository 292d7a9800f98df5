{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{- define "ocdserve.name" -}}
{{ ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "ocdserve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "ocdserve.labels" -}}
{{ include "ocdserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "ocdserve.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default (printf "%s-%s" $.Chart.AppVersion (ternary "gpu" "cpu" $.Values.gpu.enabled)) }}{{ end }}
{{- end }}
{{- end }}

{{/* Seconds that a pod has to stop: drain, requests in flight, Triton's end. */}}
{{- define "ocdserve.grace" -}}
{{ add .Values.serve.drainS .Values.serve.exitTimeoutS 10 }}
{{- end }}

{{/* Arguments of a container that serves; call it with root, http, grpc and source (the options that name the detector). */}}
{{- define "ocdserve.args" -}}
{{- $serve := .root.Values.serve }}
- serve
- --host=0.0.0.0
- --http-port={{ .http }}
- --grpc-port={{ .grpc }}
- --log-format=json
- --drain-s={{ $serve.drainS }}
- --exit-timeout-s={{ $serve.exitTimeoutS }}
- --ready-timeout-s={{ $serve.readyTimeoutS }}
{{- with $serve.grpcConnectionAgeMs }}
- --grpc-max-connection-age={{ int64 . }}
- --grpc-max-connection-age-grace=60000
{{- end }}
{{- range concat .source $serve.args }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{/* What Pod Security "restricted" asks of a container, and a root file system that nothing can write to. */}}
{{- define "ocdserve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "ocdserve.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* Probes of a container that serves HTTP on .http. The server replaces its own processes within 90 s; a container is
started again only if it does not. */}}
{{- define "ocdserve.probes" -}}
startupProbe:
  httpGet: { path: /v2/health/ready, port: {{ .http }} }
  periodSeconds: 5
  failureThreshold: {{ add (div .root.Values.serve.readyTimeoutS 5) 6 }}
readinessProbe:
  httpGet: { path: /v2/health/ready, port: {{ .http }} }
  periodSeconds: 3
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  exec: { command: [ocdserve, health, "http://127.0.0.1:{{ .http }}", --canary, --timeout-s=20] }
  periodSeconds: 60
  timeoutSeconds: 30
  failureThreshold: 3
{{- end }}

{{- define "ocdserve.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if .Values.gpu.enabled }}
{{- $limits := merge (dict .Values.gpu.resource (int .Values.gpu.count)) ($resources.limits | default dict) }}
{{- $resources = set $resources "limits" $limits }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* Helm adds the default's rollingUpdate to a type of the user's. */}}
{{- define "ocdserve.strategy" -}}
{{- if eq (default "" .Values.strategy.type) "Recreate" }}{{ toYaml (omit .Values.strategy "rollingUpdate") }}{{ else }}{{ toYaml .Values.strategy }}{{ end }}
{{- end }}

{{- define "ocdserve.volumes" -}}
- name: shm
  emptyDir: { medium: Memory, sizeLimit: {{ .Values.shm.sizeLimit }} }
- name: tmp
  emptyDir: { sizeLimit: {{ .Values.tmp.sizeLimit }} }
{{- end }}

{{- define "ocdserve.mounts" -}}
- { name: shm, mountPath: /dev/shm }
- { name: tmp, mountPath: /tmp }
{{- end }}

{{/* Where pods go, of Deployment and InferenceService alike. */}}
{{- define "ocdserve.placement" -}}
{{- range $name := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with index $.Values $name }}
{{ $name }}: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with .Values.gpu.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What replicas are scaled by; the rule is in files/rules.yaml. Who scrapes without our monitors has no label `release`. */}}
{{- define "ocdserve.queueQuery" -}}
{{ printf "max(ocdserve:queue_seconds_per_request{namespace=%q, release=~%q})" .Release.Namespace (printf "%s|" .Release.Name) | quote }}
{{- end }}
