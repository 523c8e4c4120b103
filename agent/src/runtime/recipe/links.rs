//! Environment variables that tell of the Services of the pod's namespace. Pure.
//! <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;

/// The variables of services that have an address of their own: a headless one has none.
pub fn variables<'a>(services: impl IntoIterator<Item = &'a Service>) -> Vec<(String, String)> {
    let mut env = Vec::new();
    for service in services {
        let spec = service.spec.as_ref();
        let Some(ip) = spec.and_then(|s| s.cluster_ip.as_deref()).and_then(|ip| ip.parse::<IpAddr>().ok()) else { continue };
        let name = variable(service.metadata.name.as_deref().unwrap_or_default());
        let ports = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        env.push((format!("{name}_SERVICE_HOST"), ip.to_string()));
        env.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                env.push((format!("{name}_SERVICE_PORT_{}", variable(port_name)), port.port.to_string()));
            }
        }
        for (i, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let address = match ip {
                IpAddr::V4(_) => format!("{ip}:{}", port.port),
                IpAddr::V6(_) => format!("[{ip}]:{}", port.port),
            };
            let url = format!("{}://{address}", protocol.to_lowercase());
            if i == 0 {
                env.push((format!("{name}_PORT"), url.clone()));
            }
            let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
            env.push((prefix.clone(), url));
            env.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
            env.push((format!("{prefix}_PORT"), port.port.to_string()));
            env.push((format!("{prefix}_ADDR"), ip.to_string()));
        }
    }
    env
}

fn variable(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_kubernetes_writes_them() {
        let service = |spec: serde_json::Value| -> Service {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "redis-primary"}, "spec": spec})).unwrap()
        };
        let services = [
            service(serde_json::json!({"clusterIP": "10.0.0.11", "ports": [{"port": 6379, "name": "db"}]})),
            service(serde_json::json!({"clusterIP": "None", "ports": [{"port": 1}]})),
            service(serde_json::json!({"type": "ExternalName", "externalName": "example.org"})),
        ];
        let lines: Vec<String> = variables(&services).into_iter().map(|(n, v)| format!("{n}={v}")).collect();
        let expected = [
            "REDIS_PRIMARY_SERVICE_HOST=10.0.0.11",
            "REDIS_PRIMARY_SERVICE_PORT=6379",
            "REDIS_PRIMARY_SERVICE_PORT_DB=6379",
            "REDIS_PRIMARY_PORT=tcp://10.0.0.11:6379",
            "REDIS_PRIMARY_PORT_6379_TCP=tcp://10.0.0.11:6379",
            "REDIS_PRIMARY_PORT_6379_TCP_PROTO=tcp",
            "REDIS_PRIMARY_PORT_6379_TCP_PORT=6379",
            "REDIS_PRIMARY_PORT_6379_TCP_ADDR=10.0.0.11",
        ];
        assert_eq!(lines, expected);
    }
}
