{{- define "nodeagent.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "nodeagent.labels" -}}
app.kubernetes.io/name: nodeagent
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "nodeagent.selector" -}}
app.kubernetes.io/name: nodeagent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "nodeagent.port" -}}
{{- .Values.kubeletAPI.port | default (ternary 10350 10250 (eq .Values.mode "beside")) -}}
{{- end -}}

{{/* The token: as given, or as it is in the cluster already, or a new one. */}}
{{- define "nodeagent.token" -}}
{{- $name := printf "%s-bootstrap" (include "nodeagent.name" .) -}}
{{- $known := (lookup "v1" "Secret" .Release.Namespace $name).data | default dict -}}
{{- $id := .Values.bootstrapToken.id | default (index $known "token-id" | default "" | b64dec) -}}
{{- $secret := .Values.bootstrapToken.secret | default (index $known "token-secret" | default "" | b64dec) -}}
{{- printf "%s.%s" ($id | default (randAlphaNum 6 | lower)) ($secret | default (randAlphaNum 16 | lower)) -}}
{{- end -}}

{{/* The agent's configuration: what the chart knows; the values' `config` is laid over it. */}}
{{- define "nodeagent.config" -}}
apiVersion: nodeagent.dev/v1
kind: NodeAgentConfiguration
manifests:
  - {{ .Values.install.manifests | quote }}
port: {{ include "nodeagent.port" . }}
authentication:
  x509:
    clientCAFile: /etc/nodeagent/pki/client-ca.crt
serverTLSBootstrap: {{ .Values.kubeletAPI.serverTLSBootstrap }}
{{- with .Values.clusterCIDRs }}
masqueradeExcept:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if eq .Values.mode "beside" }}
cgroupParent: nodeagent
{{- end }}
{{- end -}}
