//! What is shown to Prometheus and to metrics-server, under the names that the kubelet and cAdvisor made known.

mod cadvisor;
mod family;
mod own;
mod resource;

use std::sync::Arc;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

use super::server::Shared;
use crate::api::{ApiError, Response, reply};
use crate::pod::node::Node;
use crate::pod::usage::Wanted;

pub use own::Requests;

/// The two text formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' 0.0.4: what the kubelet answers, and metrics-server expects.
    Prometheus,
    /// OpenMetrics 1.0.0, for those who ask for it.
    OpenMetrics,
}

impl Exposition {
    /// From an Accept header: the first of the two that stands there.
    pub fn wanted(accept: &str) -> Self {
        let kinds = accept.split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim());
        let first = kinds.into_iter().find(|kind| matches!(*kind, "application/openmetrics-text" | "text/plain"));
        if first == Some("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    fn answer(self, registry: &Registry) -> Result<Response, ApiError> {
        let mut page = String::new();
        let (encoded, kind) = match self {
            Self::Prometheus => (prometheus_text::encode(&mut page, registry), "text/plain; version=0.0.4; charset=utf-8"),
            Self::OpenMetrics => {
                (text::encode(&mut page, registry), "application/openmetrics-text; version=1.0.0; charset=utf-8")
            }
        };
        encoded.map_err(|e| ApiError::internal(format!("write the metrics: {e}")))?;
        Ok(reply::whole(kind, page))
    }
}

/// `/metrics`.
pub async fn own(shared: &Shared, exposition: Exposition) -> Result<Response, ApiError> {
    let usage = shared.node.usage(Wanted::All).await?;
    let mut registry = Registry::default();
    shared.requests.register(&mut registry);
    shared.node.counters().register_events(&mut registry);
    registry.register_collector(Box::new(own::of(&*shared.node)));
    registry.register_collector(Box::new(own::volumes(&usage)));
    exposition.answer(&registry)
}

/// `/metrics/resource`.
pub async fn resource(node: &Arc<dyn Node>, exposition: Exposition) -> Result<Response, ApiError> {
    let usage = node.usage(Wanted::Counters).await;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(resource::of(usage.as_ref().ok())));
    exposition.answer(&registry)
}

/// `/metrics/cadvisor`.
pub async fn cadvisor(node: &Arc<dyn Node>, exposition: Exposition) -> Result<Response, ApiError> {
    let usage = node.usage(Wanted::All).await?;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(cadvisor::of(&usage)));
    exposition.answer(&registry)
}

/// `/metrics/probes`.
pub fn probes(node: &Arc<dyn Node>, exposition: Exposition) -> Result<Response, ApiError> {
    let mut registry = Registry::default();
    node.counters().register_probes(&mut registry);
    exposition.answer(&registry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("", Exposition::Prometheus)]
    #[case("*/*", Exposition::Prometheus)]
    #[case("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.1", Exposition::Prometheus)]
    #[case("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Exposition::OpenMetrics)]
    fn formats(#[case] accept: &str, #[case] expected: Exposition) {
        assert_eq!(Exposition::wanted(accept), expected);
    }
}
