module nodeagent.dev/e2e/helm

go 1.26
