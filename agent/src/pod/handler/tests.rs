//! httpGet against a server that says what the table has it say.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::HTTPGetAction;
use rstest::rstest;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;

/// Serves this function of the path until the test ends: the port, and the heads of all requests.
struct Server {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(tls: Option<TlsAcceptor>, answer: fn(&str) -> String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let kept = heads.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, tls) = (kept.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &kept, answer).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &kept, answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, heads: &Mutex<Vec<String>>, answer: fn(&str) -> String) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while stream.read_line(&mut head).await.is_ok_and(|n| n > 2) {}
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    heads.lock().unwrap().push(head);
    let text = answer(&path);
    if text == "never" {
        std::future::pending::<()>().await;
    }
    // A client that has heard enough is gone by now.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn status(line: &str, more: &str) -> String {
    format!("HTTP/1.1 {line}\r\n{more}Content-Length: 4\r\n\r\nbody")
}

fn usual(path: &str) -> String {
    match path {
        "/ok" | "/ok?a=b" => status("200 OK", ""),
        "/created" => status("201 Created", ""),
        "/missing" => status("404 Not Found", ""),
        "/broken" => status("500 Internal Server Error", ""),
        "/unmodified" => "HTTP/1.1 304 Not Modified\r\n\r\n".into(),
        "/nowhere" => status("302 Found", ""),
        "/here" => status("302 Found", "Location: /ok\r\n"),
        "/strange" => status("301 Moved Permanently", "Location: http://192.0.2.1/ok\r\n"),
        "/loop" => status("307 Temporary Redirect", "Location: /loop\r\n"),
        "/mail" => status("302 Found", "Location: mailto:a@b\r\n"),
        "/long" => format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1 << 20)),
        "/cut" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort".into(),
        "/none" => String::new(),
        "/never" => "never".into(),
        other => match other.strip_prefix("/row/").and_then(|n| n.parse::<u32>().ok()) {
            Some(0) => status("200 OK", ""),
            Some(n) => status("302 Found", &format!("Location: /row/{}\r\n", n - 1)),
            None => "garbage\r\n\r\n".into(),
        },
    }
}

fn action(yaml: &str) -> HTTPGetAction {
    serde_yaml::from_str(yaml).unwrap()
}

async fn ask(server: &Server, action: &HTTPGetAction, limit: Duration) -> Result<Answer, http::Error> {
    http::get(&Dialer::Node, &http::Request::new(action, "127.0.0.1", server.port, Caller::Probe).unwrap(), limit).await
}

const LONG: Duration = Duration::from_secs(60);

#[rstest]
#[case::ok("/ok", "success")]
#[case::query("/ok?a=b", "success")]
#[case::without_slash("ok", "success")]
#[case::any_of_the_200s("/created", "success")]
#[case::missing("/missing", "failure HTTP probe failed with statuscode: 404")]
#[case::broken("/broken", "failure HTTP probe failed with statuscode: 500")]
#[case::redirect_on_the_same_host("/here", "success")]
#[case::redirect_to_another_host("/strange", "warning Probe terminated redirects, Response body: body")]
#[case::redirect_to_nowhere("/nowhere", "warning Probe terminated redirects, Response body: body")]
#[case::no_redirect_at_all("/unmodified", "warning Probe terminated redirects, Response body: ")]
#[case::nine_redirects("/row/9", "success")]
#[case::ten_redirects("/row/10", "stopped after 10 redirects")]
#[case::for_ever("/loop", "stopped after 10 redirects")]
#[case::not_http("/mail", "warning Probe terminated redirects")]
#[case::a_long_body("/long", "success")]
#[case::a_body_cut_short("/cut", "failure Get \"http://127.0.0.1:PORT/cut\": ")]
#[case::no_answer("/none", "failure Get \"http://127.0.0.1:PORT/none\": EOF")]
#[case::garbage("/garbage", "failure Get \"http://127.0.0.1:PORT/garbage\": ")]
#[tokio::test]
async fn answers(#[case] path: &str, #[case] expected: &str) {
    let server = Server::start(None, usual).await;
    let answer = ask(&server, &action(&format!("{{path: '{path}', port: 1}}")), LONG).await;
    if let Ok(answer) = &answer {
        assert!(answer.body.len() <= 10 * 1024, "{}", answer.body.len());
    }
    let said = match judge(answer) {
        Verdict::Success => "success".to_owned(),
        Verdict::Warning(text) => format!("warning {text}"),
        Verdict::Failure(text) => format!("failure {text}"),
        Verdict::Unknown(text) => format!("unknown {text}"),
    };
    let said = said.replace(&server.port.to_string(), "PORT");
    assert!(said.contains(expected), "{said}");
}

#[rstest]
#[case::usual("{path: /ok, port: 1}", &["host: 127.0.0.1:PORT", "user-agent: kube-probe/1.37", "accept: */*", "connection: close"], &[])]
#[case::own_host("{path: /ok, port: 1, httpHeaders: [{name: Host, value: shop.example}]}", &["host: shop.example"], &["127.0.0.1"])]
#[case::own_agent("{path: /ok, port: 1, httpHeaders: [{name: User-Agent, value: me}]}", &["user-agent: me"], &["kube-probe"])]
#[case::no_accept("{path: /ok, port: 1, httpHeaders: [{name: Accept, value: ''}]}", &[], &["accept:"])]
#[case::twice("{path: /ok, port: 1, httpHeaders: [{name: X-A, value: b}, {name: x-a, value: c}]}", &["x-a: b", "x-a: c"], &[])]
#[case::kept_on_the_way("{path: /here, port: 1, httpHeaders: [{name: Host, value: shop.example}, {name: X-A, value: b}]}",
    &["host: shop.example", "x-a: b"], &["127.0.0.1"])]
#[tokio::test]
async fn headers(#[case] yaml: &str, #[case] there: &[&str], #[case] absent: &[&str]) {
    let server = Server::start(None, usual).await;
    ask(&server, &action(yaml), LONG).await.unwrap();
    let head = server.heads().last().unwrap().to_lowercase().replace(&server.port.to_string(), "PORT");
    for expected in there {
        assert!(head.contains(&expected.replace("port", "PORT")), "{head}");
    }
    for unwanted in absent {
        assert!(!head.contains(unwanted), "{head}");
    }
}

#[tokio::test]
async fn who_is_silent_or_absent_has_failed() {
    let server = Server::start(None, usual).await;
    let late = ask(&server, &action("{path: /never, port: 1}"), Duration::from_millis(50)).await.unwrap_err().to_string();
    assert!(late.contains("context deadline exceeded"), "{late}");
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let request = http::Request::new(&action("{path: /, port: 1}"), "127.0.0.1", free, Caller::Probe).unwrap();
    let refused = http::get(&Dialer::Node, &request, LONG).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("dial tcp 127.0.0.1:{free}: connect: connection refused")), "{refused}");
}

fn acceptor() -> TlsAcceptor {
    // Of another name and signed by nobody: it is not looked at.
    let key = rcgen::generate_simple_self_signed(vec!["somebody.else".into()]).unwrap();
    let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], private.into()).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn https_asks_for_no_certificate() {
    let server = Server::start(Some(acceptor()), usual).await;
    assert_eq!(ask(&server, &action("{path: /ok, port: 1, scheme: HTTPS}"), LONG).await.unwrap().status, 200);
}

#[tokio::test]
async fn https_to_a_server_without_it_is_told_apart() {
    let server = Server::start(None, |_| "HTTP/1.1 400 Bad Request\r\n\r\n".into()).await;
    let request = http::Request::new(&action("{path: /ok, port: 1, scheme: HTTPS}"), "127.0.0.1", server.port, Caller::Probe);
    let request = request.unwrap();
    // The first record of a handshake has no line's end: the server waits for one as long as the client stays.
    let answer = http::get(&Dialer::Node, &request, Duration::from_millis(200)).await;
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(request.in_the_clear().authority(), format!("127.0.0.1:{}", server.port));
}

#[tokio::test]
async fn http2_is_spoken_in_the_clear_to_who_is_probed_by_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut connection) = h2::server::handshake(stream).await else { continue };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let status = match (request.uri().path(), request.uri().host()) {
                    ("/ok", Some("shop.example")) => 200,
                    ("/here", _) => 302,
                    _ => 404,
                };
                let answer = hyper::Response::builder().status(status).header("location", "/ok").body(()).unwrap();
                respond.send_response(answer, true).unwrap();
            }
        }
    });
    let server = Server { port, heads: Arc::default() };
    let of =
        |path: &str| format!("{{path: {path}, port: 1, protocol: HTTP2, httpHeaders: [{{name: Host, value: shop.example}}]}}");
    for (path, status) in [("/ok", 200), ("/here", 200), ("/missing", 404)] {
        assert_eq!(ask(&server, &action(&of(path)), LONG).await.unwrap().status, status, "{path}");
    }
    // Whoever speaks another language has failed.
    let old = Server::start(None, usual).await;
    assert!(ask(&old, &action(&of("/ok")), LONG).await.is_err());
}
