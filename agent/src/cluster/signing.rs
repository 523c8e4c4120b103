//! Certificates that the cluster signs: a CertificateSigningRequest, and the wait for its answer. Also when each is asked for anew.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

use super::pair::{Life, Pair};
use super::{Failure, answer, whole};
use crate::durable;
use crate::image::Digest;

/// How long somebody may think about whether to approve; then it is asked again, as the kubelet does.
const APPROVED_WITHIN: Duration = Duration::from_secs(15 * 60);
/// A clock that is set, and a machine that sleeps, are noticed within this.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    /// The signer's name.
    pub signer: &'static str,
    /// What it may be used for besides signatures.
    pub usage: &'static str,
    /// The node's name in the cluster.
    pub node_name: String,
    /// Names and addresses of a server.
    pub names: Vec<SanType>,
}

impl Wish {
    /// A client's, by which the API server knows the node.
    pub(super) fn client(node_name: &str) -> Self {
        let (signer, usage) = ("kubernetes.io/kube-apiserver-client-kubelet", "client auth");
        Self { signer, usage, node_name: node_name.into(), names: Vec::new() }
    }

    /// The kubelet API's, by which the API server knows that port.
    pub(super) fn server(node_name: &str, addresses: &[std::net::IpAddr]) -> Self {
        let mut names: Vec<SanType> = node_name.try_into().map(SanType::DnsName).into_iter().collect();
        names.extend(addresses.iter().copied().map(SanType::IpAddress));
        Self { signer: "kubernetes.io/kubelet-serving", usage: "server auth", node_name: node_name.into(), names }
    }

    fn request(&self, key: &KeyPair) -> Result<CertificateSigningRequest, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{}", self.node_name));
        params.subject_alt_names.clone_from(&self.names);
        let pem = params.serialize_request(key)?.pem()?;
        Ok(CertificateSigningRequest {
            // The same key asks under the same name, also after a crash: nobody has to approve it twice.
            metadata: ObjectMeta { name: Some(self.name(key)), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: self.signer.into(),
                usages: Some(vec!["digital signature".into(), self.usage.into()]),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        })
    }

    fn name(&self, key: &KeyPair) -> String {
        let subject = format!("{}|{}|{:?}|", self.node_name, self.signer, self.names);
        let digest = Digest::of(&[subject.as_bytes(), key.public_key_raw()].concat());
        format!("node-csr-{}", digest.hex())
    }
}

/// Asks until there is an answer, and puts it into `pair`. The key is kept beside it meanwhile; one that was refused isn't used again.
pub(super) async fn obtain(client: Client, wish: &Wish, pair: &Pair) -> Result<(), Failure> {
    let failed = |message: String| Failure { code: 0, message };
    let pending = pair.pending_key();
    let key = pending_key(pair).map_err(|error| failed(format!("keep a key in {}: {error}", pending.display())))?;
    let request = wish.request(&key).map_err(|error| failed(error.to_string()))?;
    let signed = match ask(client, request).await {
        Err(failure) if failure.code == DENIED => {
            let _ = std::fs::remove_file(&pending);
            return Err(failure);
        }
        signed => signed?,
    };
    let kept = pair.put(&signed, &key.serialize_pem());
    kept.map_err(|error| failed(format!("keep the certificate in {}: {error}", pair.current().display())))?;
    let _ = std::fs::remove_file(&pending);
    Ok(())
}

fn pending_key(pair: &Pair) -> std::io::Result<KeyPair> {
    let path = pair.pending_key();
    if let Some(key) = std::fs::read_to_string(&path).ok().and_then(|pem| KeyPair::from_pem(&pem).ok()) {
        return Ok(key);
    }
    path.parent().map_or(Ok(()), durable::private_folder)?;
    let key = KeyPair::generate().map_err(std::io::Error::other)?;
    durable::write(&path, key.serialize_pem().as_bytes())?;
    Ok(key)
}

/// Not an HTTP status of the API server: somebody said no.
const DENIED: u16 = 1;

async fn ask(client: Client, request: CertificateSigningRequest) -> Result<String, Failure> {
    let requests: Api<CertificateSigningRequest> = Api::all(client);
    let name = request.metadata.name.clone().unwrap_or_default();
    match answer(requests.create(&PostParams::default(), &request)).await {
        // Of an agent before this one.
        Err(failure) if failure.code == 409 => {}
        created => drop(created?),
    }
    let waiting = tokio::time::timeout(APPROVED_WITHIN, await_condition(requests, &name, Answered));
    let unanswered = |message| Failure { code: 0, message };
    match waiting.await {
        Ok(Ok(Some(answered))) => verdict(&answered).unwrap_or_else(|| Err(unanswered("it was not answered".into()))),
        Ok(Ok(None)) => Err(unanswered(format!("CertificateSigningRequest {name} was deleted"))),
        Ok(Err(error)) => Err(unanswered(whole(&error))),
        Err(_) => Err(unanswered(format!(
            "nobody has approved CertificateSigningRequest {name} within {} min: kubectl certificate approve {name}",
            APPROVED_WITHIN.as_secs() / 60
        ))),
    }
}

struct Answered;

impl Condition<CertificateSigningRequest> for Answered {
    fn matches_object(&self, request: Option<&CertificateSigningRequest>) -> bool {
        request.is_none_or(|request| verdict(request).is_some())
    }
}

/// The certificates in PEM, or why there will be none; none: neither yet.
fn verdict(request: &CertificateSigningRequest) -> Option<Result<String, Failure>> {
    let status = request.status.as_ref()?;
    let no = status.conditions.iter().flatten().find(|c| matches!(c.type_.as_str(), "Denied" | "Failed"));
    if let Some(no) = no {
        let name = request.metadata.name.as_deref().unwrap_or_default();
        let message = format!("CertificateSigningRequest {name}: {}: {}", no.type_, no.message.as_deref().unwrap_or_default());
        return Some(Err(Failure { code: DENIED, message }));
    }
    let pem = status.certificate.as_ref().filter(|pem| !pem.0.is_empty())?;
    Some(String::from_utf8(pem.0.clone()).map_err(|error| Failure { code: 0, message: error.to_string() }))
}

/// Waits until a certificate is to be renewed; at once, where there is none.
pub(super) async fn until_due(pair: &Pair) {
    let Some(due) = pair.life().map(|life: Life| life.renew_at(random())) else { return };
    loop {
        let left = due.duration_since(Timestamp::now());
        let Ok(left) = Duration::try_from(left) else { return };
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
    }
}

/// From 0 to 1.
fn random() -> f64 {
    // Without a random number, all ask when half of them would have.
    crate::random::bytes().map_or(0.5, |bytes| f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_answered_by_a_certificate_or_by_a_no() {
        let verdict = |status: serde_json::Value| {
            let object = json!({"metadata": {"name": "r"}, "spec": {"request": "", "signerName": "s"}, "status": status});
            verdict(&serde_json::from_value(object).unwrap())
        };
        assert_eq!(verdict(json!({})), None);
        assert_eq!(verdict(json!({"conditions": [{"type": "Approved", "status": "True"}]})), None);
        assert_eq!(verdict(json!({"certificate": "UEVN"})), Some(Ok("PEM".into())));
        let no = verdict(json!({"conditions": [{"type": "Denied", "status": "True", "message": "who are you?"}]}));
        assert_eq!(no.unwrap().unwrap_err().message, "CertificateSigningRequest r: Denied: who are you?");
    }

    #[test]
    fn the_same_key_asks_under_the_same_name_and_another_wish_under_another() {
        let folder = tempfile::tempdir().unwrap();
        let pair = Pair::new(folder.path(), "kubelet-client");
        let (one, again) = (pending_key(&pair).unwrap(), pending_key(&pair).unwrap());
        let wish = Wish::client("n");
        assert_eq!(wish.name(&one), wish.name(&again));
        assert_ne!(wish.name(&one), Wish::client("m").name(&one));
        assert_ne!(wish.name(&one), Wish::server("n", &[]).name(&one));
        let request = wish.request(&one).unwrap();
        assert!(request.spec.request.0.starts_with(b"-----BEGIN CERTIFICATE REQUEST-----"));
    }
}
