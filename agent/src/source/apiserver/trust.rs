//! Trust anchors that pods' volumes want: ClusterTrustBundles, by a watch of one name or of one signer's. They are kept as a ConfigMap
//! under a name that none can have ([`references::trust_map`](crate::model::references::trust_map)), so volumes follow them as they follow ConfigMaps.
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#cluster-trust-bundles>

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ClusterTrustBundleProjection, ConfigMap};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, Selector};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::Eager;
use super::needs::Keeper;
use crate::cluster::{pem, whole};
use crate::model::{Body, ObjectRef, Origin, ValidObject};
use crate::runtime::volumes::payload::TRUST;

/// The API's, the newest first: v1 since Kubernetes 1.37, v1beta1 since 1.33.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// For ever. A cluster that doesn't serve them has none, and is asked again.
pub(super) async fn follow(keeper: Keeper, source: ClusterTrustBundleProjection) {
    let mut waits = Eager::default();
    loop {
        for version in VERSIONS {
            follow_version(&keeper, version, &source).await;
        }
        keeper.remove();
        keeper.told.send_replace(true);
        tokio::time::sleep(waits.next().unwrap_or(Eager::MOST)).await;
    }
}

/// As long as the cluster serves this version.
async fn follow_version(keeper: &Keeper, version: &str, source: &ClusterTrustBundleProjection) {
    let kind = GroupVersionKind::gvk("certificates.k8s.io", version, "ClusterTrustBundle");
    let api: Api<DynamicObject> = Api::all_with(keeper.cluster.client(), &ApiResource::from_gvk(&kind));
    let Some(selected) = selected(source) else { return };
    let mut stream = watcher(api, selected).backoff(Eager::default()).boxed();
    let (mut bundles, mut listed, mut failures) = (BTreeMap::new(), false, 0_u32);
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                bundles.clear();
                listed = false;
            }
            Ok(watcher::Event::Apply(bundle) | watcher::Event::InitApply(bundle)) => {
                let text = bundle.data["spec"]["trustBundle"].as_str().unwrap_or_default().to_owned();
                bundles.insert(bundle.name_any(), text);
            }
            Ok(watcher::Event::Delete(bundle)) => drop(bundles.remove(&bundle.name_any())),
            Ok(watcher::Event::InitDone) => listed = true,
            Err(error) if is_unknown(&error) => return,
            Err(error) => {
                failures = failures.saturating_add(u32::from(super::needs::is_answer(&error)));
                keeper.complain(failures, &whole(&error));
                continue;
            }
        }
        if listed {
            failures = 0;
            if bundles.is_empty() {
                keeper.remove();
            } else {
                keeper.put(kept(&keeper.key, normal(bundles.values())));
            }
            keeper.told.send_replace(true);
        }
    }
}

/// None: a selector that selects nothing, as one that isn't there.
fn selected(source: &ClusterTrustBundleProjection) -> Option<watcher::Config> {
    let config = watcher::Config::default();
    if let Some(name) = &source.name {
        return Some(config.fields(&format!("metadata.name={name}")));
    }
    let selector = Selector::try_from(source.label_selector.clone()?).ok()?;
    let signer = source.signer_name.as_deref().unwrap_or_default();
    Some(config.fields(&format!("spec.signerName={signer}")).labels_from(&selector))
}

/// The version isn't served.
fn is_unknown(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

fn kept(key: &ObjectRef, anchors: String) -> ValidObject {
    let map = ConfigMap {
        metadata: ObjectMeta { name: Some(key.name.clone()), namespace: Some(key.namespace.clone()), ..ObjectMeta::default() },
        data: Some([(TRUST.to_owned(), anchors)].into()),
        ..ConfigMap::default()
    };
    ValidObject::trusted(Body::ConfigMap(Arc::new(map)), Origin::Api)
}

/// Each certificate once, and nothing else, in an order that depends on nothing but them.
fn normal<'a>(bundles: impl Iterator<Item = &'a String>) -> String {
    let certificates = bundles.flat_map(|text| CertificateDer::pem_slice_iter(text.as_bytes()).flatten());
    let certificates: BTreeSet<Vec<u8>> = certificates.map(|certificate| certificate.to_vec()).collect();
    certificates.iter().map(|certificate| pem(certificate)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_certificate_is_there_once_and_nothing_else() {
        let (one, two) = (pem(&[1; 100]), pem(b"two"));
        assert_eq!(one.lines().map(str::len).collect::<Vec<_>>(), [27, 64, 64, 8, 25]);
        let bundles = [format!("by hand\n{two}{one}"), one.clone()];
        assert_eq!(normal(bundles.iter()), one + &two);
        assert_eq!(normal([].iter()), "");
    }

    #[test]
    fn what_is_watched_is_a_name_or_a_signers_with_a_selector() {
        let selected = |source| selected(&serde_json::from_value(source).unwrap());
        assert_eq!(selected(json!({"path": "p", "name": "a"})).unwrap().field_selector.unwrap(), "metadata.name=a");
        let config = selected(json!({"path": "p", "signerName": "a.b/c", "labelSelector": {"matchLabels": {"x": "y"}}})).unwrap();
        let (fields, labels) = (config.field_selector.unwrap(), config.label_selector.unwrap());
        assert_eq!((fields.as_str(), labels.as_str()), ("spec.signerName=a.b/c", "x=y"));
        assert!(selected(json!({"path": "p", "signerName": "a.b/c"})).is_none(), "no selector selects nothing");
    }
}
