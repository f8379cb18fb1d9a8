{{/* Made from values.yaml and Chart.yaml by `make helm-generate`; why: see _values.tpl. */}}
{{- define "certctl.appVersion" -}}0.1.0{{- end }}
{{- define "certctl.defaults" }}
agent:
    affinity: {}
    allowCommands: []
    credentialRotation: 720h
    dataDir: ""
    enabled: true
    extraEnv: []
    extraVolumeMounts: []
    extraVolumes: []
    hostPaths: []
    image:
        digest: ""
        repository: ghcr.io/certctl/certctl-agent
        tag: ""
    labels: {}
    logLevel: info
    nodeSelector: {}
    podAnnotations: {}
    podLabels: {}
    priorityClassName: ""
    resources:
        limits:
            memory: 128Mi
        requests:
            cpu: 20m
            memory: 32Mi
    runAsUser: 65532
    serverCA: ""
    serverUrl: ""
    serviceAccount:
        annotations: {}
    terminationGracePeriodSeconds: 30
    tolerations: []
    updateStrategy:
        rollingUpdate:
            maxUnavailable: 10%
async-poller:
    database:
        quota: 8
    intervals:
        asyncPoll: 5s
    maxWaitSeconds:
        default: 0
        digicert: 0
        entrust: 0
        globalsign: 0
        sectigo: 0
audit:
    database:
        quota: 8
    intervals:
        chainVerify: 6h
backup:
    activeDeadlineSeconds: 3600
    enabled: false
    image:
        repository: postgres
        tag: 16-alpine
    keep: 7
    resources:
        limits:
            memory: 512Mi
        requests:
            cpu: 50m
            memory: 64Mi
    runAsUser: 999
    schedule: 30 2 * * *
    storage:
        existingClaim: ""
        size: 10Gi
        storageClass: ""
global:
    commonLabels: {}
    database:
        caConfigMap: ""
        existingSecret: ""
        maxConns: 50
        port: 0
        roles: separate
        url: ""
    fixedIds: true
    image:
        digest: ""
        pullPolicy: IfNotPresent
        repository: ghcr.io/certctl/certctl
        tag: ""
    imagePullSecrets: []
    metrics:
        enabled: false
    networkPolicy:
        caEgress: []
        enabled: true
        extraEgress: []
        metricsFrom: []
    secrets:
        encryptionKey: ""
        existingSecret: ""
        internalSecret: ""
        joinToken: ""
        roleSecret: ""
    service:
        affinity: {}
        autoscaling:
            behavior: {}
            enabled: false
            maxReplicas: 3
            minReplicas: 1
            targetCPUUtilizationPercentage: 70
            targetQueueAgeSeconds: 0
        containerSecurityContext:
            allowPrivilegeEscalation: false
            capabilities:
                drop:
                    - ALL
            readOnlyRootFilesystem: true
        extraEnv: []
        extraVolumeMounts: []
        extraVolumes: []
        logLevel: info
        nodeSelector: {}
        podAnnotations: {}
        podDisruptionBudget:
            enabled: true
            maxUnavailable: 1
        podLabels: {}
        podSecurityContext:
            fsGroup: 65532
            runAsGroup: 65532
            runAsNonRoot: true
            runAsUser: 65532
            seccompProfile:
                type: RuntimeDefault
        preStopSeconds: 5
        priorityClassName: ""
        replicas: 1
        resources:
            limits:
                memory: 256Mi
            requests:
                cpu: 50m
                memory: 64Mi
        serviceAccount:
            annotations: {}
        terminationGracePeriodSeconds: 45
        tolerations: []
        topologySpreadConstraints: []
    tls:
        existingSecret: ""
inventory:
    database:
        quota: 14
    intervals:
        agentHealth: 2m
        cloudDiscovery: 6h
        credentialGC: 1h
        endpointHealth: 60s
        networkScan: 6h
        shortLivedExpiry: 30s
    resources:
        limits:
            memory: 512Mi
        requests:
            cpu: 100m
            memory: 96Mi
issuance:
    database:
        quota: 12
    intervals:
        crlGeneration: 1h
        enrolmentGC: 1m
        orphanSearch: 1h
    resources:
        limits:
            memory: 512Mi
        requests:
            cpu: 100m
            memory: 96Mi
migrate:
    activeDeadlineSeconds: 900
    backoffLimit: 3
    mode: hook
    resources:
        limits:
            memory: 256Mi
        requests:
            cpu: 50m
            memory: 64Mi
monitoring:
    dashboard:
        enabled: false
        labels:
            grafana_dashboard: "1"
    prometheusRule:
        enabled: false
        labels: {}
    serviceMonitor:
        enabled: false
        interval: 30s
        labels: {}
postgresql:
    affinity: {}
    auth:
        existingSecret: ""
        password: ""
    enabled: true
    image:
        repository: postgres
        tag: 16-alpine
    nodeSelector: {}
    podAnnotations: {}
    podLabels: {}
    priorityClassName: ""
    resources:
        limits:
            memory: 1Gi
        requests:
            cpu: 100m
            memory: 256Mi
    runAsUser: 999
    storage:
        size: 10Gi
        storageClass: ""
    terminationGracePeriodSeconds: 60
    tolerations: []
renewal-scheduler:
    database:
        quota: 8
    intervals:
        digest: 24h
        jobProcessor: 30s
        jobRetry: 5m
        jobTimeout: 10m
        notificationProcess: 1m
        notificationRetry: 2m
        renewalCheck: 1h
    renewalConcurrency: 200
server:
    allowFrom: []
    auth:
        apiKey: ""
        existingSecret: ""
        type: api-key
    corsOrigins: []
    databaseUrl: ""
    ingress:
        annotations: {}
        className: ""
        enabled: false
        host: ""
        tlsSecret: ""
    resources:
        limits:
            memory: 256Mi
        requests:
            cpu: 100m
            memory: 64Mi
    service:
        annotations: {}
        type: ClusterIP
    tls:
        certManager:
            dnsNames: []
            duration: 2160h
            enabled: false
            issuerRef:
                group: cert-manager.io
                kind: ClusterIssuer
                name: ""
            renewBefore: 720h
        existingSecret: ""
        names: []
{{- end }}
