//! Scripted reviews: what is asked, how often, and what comes of the answers.

use std::sync::Mutex;

use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::header::HeaderValue;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rstest::rstest;

use super::*;

/// Knows one token and one thing that its user may do.
#[derive(Default)]
struct Script {
    asked: Mutex<Vec<String>>,
    broken: bool,
}

impl Reviewer for Script {
    fn token(&self, token: String) -> BoxFuture<'_, Result<Option<User>, ReviewError>> {
        self.asked.lock().unwrap().push(format!("token {token}"));
        let user = User { name: "system:serviceaccount:monitoring:prometheus".into(), ..User::default() };
        let answer = if self.broken { Err(ReviewError("no route".into())) } else { Ok((token == "good").then_some(user)) };
        async move { answer }.boxed()
    }

    fn access(&self, user: User, attributes: Attributes) -> BoxFuture<'_, Result<bool, ReviewError>> {
        let Attributes { verb, subresource, node } = attributes;
        self.asked.lock().unwrap().push(format!("{} {verb} nodes/{node}/{subresource}", user.name));
        let allowed = user.groups.iter().any(|g| g == "system:masters") || subresource == "metrics";
        let answer = if self.broken { Err(ReviewError("no route".into())) } else { Ok(allowed) };
        async move { answer }.boxed()
    }
}

struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    /// rcgen keeps one organization of a name.
    fn client(&self, name: &str, groups: &[&str], usage: ExtendedKeyUsagePurpose) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![usage];
        let signed = params.signed_by(&KeyPair::generate().unwrap(), &Issuer::from_params(&self.params, &self.key)).unwrap();
        signed.der().clone()
    }
}

struct Lab {
    ca: Ca,
    folder: tempfile::TempDir,
    authority: Arc<ClientAuthority>,
    script: Arc<Script>,
    access: Access,
}

fn lab(broken: bool) -> Lab {
    let (ca, folder) = (Ca::new("clients"), tempfile::tempdir().unwrap());
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, &ca.pem).unwrap();
    let authority = Arc::new(ClientAuthority::open(&file).unwrap());
    let script = Arc::new(Script { broken, ..Script::default() });
    let access = Access::new("n1".into(), authority.clone(), Policy::Reviews(script.clone()));
    Lab { ca, folder, authority, script, access }
}

fn bearer_of(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    headers
}

#[tokio::test]
async fn a_certificate_is_its_subject() {
    let lab = lab(false);
    let chain = [lab.ca.client("kube-apiserver", &["system:masters"], ExtendedKeyUsagePurpose::ClientAuth)];
    let user = lab.access.admit(&chain, &HeaderMap::new(), &Method::POST, "/exec/ns/pod/app").await.unwrap();
    assert_eq!(
        (user.name.as_str(), user.groups),
        ("kube-apiserver", ["system:masters", "system:authenticated"].map(String::from).into())
    );
    assert_eq!(*lab.script.asked.lock().unwrap(), ["kube-apiserver create nodes/n1/proxy"]);
}

#[tokio::test]
async fn nobody_comes_in_without_an_identity() {
    let lab = lab(false);
    let other = Ca::new("clients").client("admin", &["system:masters"], ExtendedKeyUsagePurpose::ClientAuth);
    let server = lab.ca.client("admin", &["system:masters"], ExtendedKeyUsagePurpose::ServerAuth);
    let nameless = lab.ca.client("", &["system:masters"], ExtendedKeyUsagePurpose::ClientAuth);
    for chain in [vec![], vec![other], vec![server], vec![nameless], vec![CertificateDer::from(vec![1, 2, 3])]] {
        let refused = lab.access.admit(&chain, &HeaderMap::new(), &Method::GET, "/pods").await;
        assert_eq!(refused, Err(Refusal::Unauthenticated));
    }
    for headers in [bearer_of("bad"), bearer_of(""), bearer_of(&"x".repeat(TOKEN_LIMIT + 1))] {
        let refused = lab.access.admit(&[], &headers, &Method::GET, "/pods").await;
        assert_eq!(refused, Err(Refusal::Unauthenticated));
    }
    assert_eq!(*lab.script.asked.lock().unwrap(), ["token bad"], "what can't be a token isn't asked about");
}

#[tokio::test]
async fn a_token_may_what_its_user_may_and_answers_are_kept() {
    let lab = lab(false);
    for _ in 0..3 {
        lab.access.admit(&[], &bearer_of("good"), &Method::GET, "/metrics/resource").await.unwrap();
        let refused = lab.access.admit(&[], &bearer_of("good"), &Method::GET, "/pods").await.unwrap_err();
        let words =
            "Forbidden (user=system:serviceaccount:monitoring:prometheus, verb=get, resource=nodes, subresource(s)=[pods proxy])";
        assert_eq!(refused.to_string(), words);
        assert_eq!(lab.access.admit(&[], &bearer_of("bad"), &Method::GET, "/pods").await, Err(Refusal::Unauthenticated));
    }
    assert_eq!(lab.script.asked.lock().unwrap().len(), 5, "{:?}", lab.script.asked);
}

#[tokio::test]
async fn a_certificate_of_another_ca_does_not_spoil_a_token() {
    let lab = lab(false);
    let chain = [Ca::new("other").client("admin", &["system:masters"], ExtendedKeyUsagePurpose::ClientAuth)];
    let user = lab.access.admit(&chain, &bearer_of("good"), &Method::GET, "/metrics").await.unwrap();
    assert_eq!(user.name, "system:serviceaccount:monitoring:prometheus");
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_lets_nobody_in_and_is_asked_again() {
    let lab = lab(true);
    let chain = [lab.ca.client("admin", &["system:masters"], ExtendedKeyUsagePurpose::ClientAuth)];
    for _ in 0..2 {
        let refused = lab.access.admit(&chain, &HeaderMap::new(), &Method::GET, "/metrics").await.unwrap_err();
        assert!(matches!(refused, Refusal::Unknown { .. }), "{refused}");
        assert_eq!(lab.access.admit(&[], &bearer_of("good"), &Method::GET, "/pods").await, Err(Refusal::Unauthenticated));
    }
    assert_eq!(lab.script.asked.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn without_an_api_server_certificates_alone_count() {
    let lab = lab(false);
    let access = Access::new("n1".into(), lab.authority.clone(), Policy::Certificates);
    let chain = [lab.ca.client("anybody", &[], ExtendedKeyUsagePurpose::ClientAuth)];
    access.admit(&chain, &HeaderMap::new(), &Method::POST, "/exec/a/b/c").await.unwrap();
    assert_eq!(access.admit(&[], &bearer_of("good"), &Method::GET, "/pods").await, Err(Refusal::Unauthenticated));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_ca_counts_at_once() {
    let lab = lab(false);
    let following = tokio::spawn(lab.authority.clone().follow());
    let fresh = Ca::new("fresh");
    let chain = [fresh.client("admin", &["system:masters"], ExtendedKeyUsagePurpose::ClientAuth)];
    let old = [lab.ca.client("admin", &["system:masters"], ExtendedKeyUsagePurpose::ClientAuth)];
    assert!(lab.authority.verify(&chain).is_none() && lab.authority.verify(&old).is_some());
    // A broken file first: the old one stays in force.
    let file = lab.folder.path().join("ca.crt");
    std::fs::write(&file, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(lab.authority.verify(&old).is_some());
    let new = lab.folder.path().join("new");
    std::fs::write(&new, &fresh.pem).unwrap();
    std::fs::rename(&new, &file).unwrap();
    let begun = Instant::now();
    while lab.authority.verify(&chain).is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the new CA is not in force");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(lab.authority.verify(&old).is_none());
    following.abort();
}

#[rstest]
#[case("/pods", &["pods", "proxy"])]
#[case("/runningpods/", &["pods", "proxy"])]
#[case("/healthz/ping", &["healthz", "proxy"])]
#[case("/configz", &["configz", "proxy"])]
#[case("/stats/summary", &["stats"])]
#[case("//stats/summary", &["stats"])]
#[case("/metrics", &["metrics"])]
#[case("/metrics/cadvisor", &["metrics"])]
#[case("/logs/", &["log"])]
#[case("/logsmore", &["proxy"])]
#[case("/checkpoint/ns/pod/app", &["checkpoint"])]
#[case("/exec/ns/pod/app", &["proxy"])]
#[case("/containerLogs/ns/pod/app", &["proxy"])]
#[case("/%6Cogs/", &["log"])]
#[case("/logs%2Fx", &["proxy"])]
#[case("/", &["proxy"])]
fn which_subresource(#[case] path: &str, #[case] expected: &[&str]) {
    assert_eq!(subresources(path), expected);
}
