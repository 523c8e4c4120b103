//! Samples of one moment, by family: what is read from the kernel has no state of its own here.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Names and values.
pub type Labels = Vec<(&'static str, String)>;

/// Samples of one name.
#[derive(Debug)]
struct Family {
    /// Of a counter: without `_total`.
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<(Labels, f64)>,
}

/// Families, in the order of their first samples.
#[derive(Debug, Default)]
pub struct Families(Vec<Family>);

impl Families {
    /// A sample of what only grows; shown as NAME_total.
    pub fn counter(&mut self, name: &'static str, help: &'static str, labels: &Labels, value: f64) {
        self.add(name, help, MetricType::Counter, labels, value);
    }

    /// A sample of what goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: &Labels, value: f64) {
        self.add(name, help, MetricType::Gauge, labels, value);
    }

    fn add(&mut self, name: &'static str, help: &'static str, kind: MetricType, labels: &Labels, value: f64) {
        let sample = (labels.clone(), value);
        match self.0.iter_mut().find(|family| family.name == name) {
            Some(family) => family.samples.push(sample),
            None => self.0.push(Family { name, help, kind, samples: vec![sample] }),
        }
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in &self.0 {
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for (labels, value) in &family.samples {
                let mut sample = metric.encode_family(labels)?;
                match family.kind {
                    MetricType::Counter => sample.encode_counter::<NoLabelSet, f64, f64>(value, None)?,
                    _ => sample.encode_gauge(value)?,
                }
            }
        }
        Ok(())
    }
}

/// Nanoseconds as Prometheus counts time.
pub fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
