//! JSON Web Tokens of an identity provider, signed in each way, and a provider that is away.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

const ISSUER: &str = "https://login.example.org";

/// A key of the provider.
struct Signer {
    kid: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    fn new(kid: &'static str, algorithm: Algorithm) -> Self {
        let key = match algorithm {
            Algorithm::RS256 | Algorithm::RS384 => {
                let made = "openssl genrsa 2048 2>/dev/null | openssl rsa -traditional -outform DER 2>/dev/null";
                EncodingKey::from_rsa_der(&shell(made))
            }
            Algorithm::ES256 => EncodingKey::from_ec_der(&shell(
                "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | openssl pkcs8 -topk8 -nocrypt -outform DER",
            )),
            _ => EncodingKey::from_ed_der(&shell(
                "openssl genpkey -algorithm ed25519 | openssl pkcs8 -topk8 -nocrypt -outform DER",
            )),
        };
        Self {
            kid,
            algorithm,
            key,
        }
    }

    fn jwk(&self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        jwk
    }

    /// Signs the usual claims with some changed; null takes one away.
    fn token(&self, changed: Value) -> String {
        let mut claims = json!({
            "iss": ISSUER, "aud": "fastvideo", "exp": now() + 600, "sub": "someone", "tenant": "acme",
        });
        for (name, value) in changed.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
            .as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.to_owned());
        encode(&header, &claims, &self.key).unwrap()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the program that makes keys is no worker"
)]
fn shell(script: &str) -> Vec<u8> {
    let made = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(made.status.success() && !made.stdout.is_empty(), "{made:?}");
    made.stdout
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn set(signers: &[&Signer]) -> String {
    let keys = signers.iter().map(|signer| signer.jwk()).collect();
    serde_json::to_string(&JwkSet { keys }).unwrap()
}

/// A server that accepts the provider's tokens.
fn serve(keys: &Keys, source: &str) -> Server {
    let issuer = format!("--server.auth.jwt.issuer={ISSUER}");
    keys.serve(&[&issuer, "--server.auth.jwt.audience=fastvideo", source])
}

async fn show(server: &Server, path: &str, token: &str) -> Response<String> {
    let bearer = format!("Bearer {token}");
    ask(server, "GET", path, &[("authorization", &bearer)]).await
}

#[tokio::test]
async fn tokens_of_each_algorithm_let_their_tenant_in() {
    let keys = Keys::new();
    let signers = [
        Signer::new("rsa", Algorithm::RS256),
        Signer::new("ec", Algorithm::ES256),
        Signer::new("ed", Algorithm::EdDSA),
    ];
    let file = keys.folder.path().join("jwks.json");
    fs::write(&file, set(&signers.each_ref())).unwrap();
    let server = serve(
        &keys,
        &format!("--server.auth.jwt.jwks_file={}", file.display()),
    );
    for signer in &signers {
        for (claims, path, status) in [
            (json!({}), "/v1/sessions", 200),
            (json!({"tenant": "unnamed"}), "/v1/sessions", 200),
            (json!({"exp": now() - 30}), "/v1/sessions", 200),
            (json!({}), "/status", 403),
            (json!({"role": "metrics", "tenant": null}), "/status", 200),
            (json!({"role": "admin", "tenant": null}), "/status", 200),
            (json!({"aud": ["other", "fastvideo"]}), "/v1/sessions", 200),
        ] {
            let answer = show(&server, path, &signer.token(claims.clone())).await;
            assert_eq!(
                answer.status(),
                status,
                "{} {claims}: {}",
                signer.kid,
                answer.body()
            );
        }
    }
    // A session of a token's tenant is that of the tenant's keys.
    let (_client, assigned) = {
        let bearer = format!("Bearer {}", signers[1].token(json!({})));
        let (mut client, _) = connect(&server, "/v1/stream", &[("authorization", &bearer)])
            .await
            .unwrap();
        client.send(json!({"type": "session_init_v2"})).await;
        let assigned = client.until_type("gpu_assigned").await;
        (client, assigned)
    };
    let id = assigned["session_id"].as_str().unwrap();
    for (who, sees) in [("acme", true), ("beta", false)] {
        let list = ask_as(&server, who, "GET", "/v1/sessions").await;
        assert_eq!(list.body().contains(id), sees, "{who}");
    }
}

#[tokio::test]
async fn tokens_that_are_wrong_let_nobody_in() {
    let keys = Keys::new();
    let [good, forger] = ["one", "one"].map(|kid| Signer::new(kid, Algorithm::ES256));
    let rsa = Signer::new("rsa", Algorithm::RS256);
    let file = keys.folder.path().join("jwks.json");
    fs::write(&file, set(&[&good, &rsa])).unwrap();
    let source = format!("--server.auth.jwt.jwks_file={}", file.display());
    let token = good.token(json!({}));
    let unsigned = token.rsplit_once('.').unwrap().0;
    let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"one"}"#);
    let (_, claims) = unsigned.split_once('.').unwrap();
    let longer = Signer {
        algorithm: Algorithm::RS384,
        ..rsa
    };
    let wrong = [
        good.token(json!({"iss": "https://other.example"})),
        good.token(json!({"aud": "other"})),
        good.token(json!({"exp": now() - 120})),
        good.token(json!({"nbf": now() + 600})),
        good.token(json!({"exp": null})),
        good.token(json!({"iss": null})),
        good.token(json!({"aud": null})),
        good.token(json!({"tenant": null})),
        good.token(json!({"tenant": "a/b"})),
        good.token(json!({"tenant": "none"})),
        good.token(json!({"role": "root"})),
        good.token(json!({"role": 1})),
        forger.token(json!({})),
        longer.token(json!({})),
        format!("{unsigned}."),
        format!("{none}.{claims}."),
    ];
    // Ten wrong ones from one address are borne in a minute.
    for wrong in wrong.chunks(8) {
        let server = serve(&keys, &source);
        for token in wrong {
            let answer = show(&server, "/v1/sessions", token).await;
            assert_eq!(
                (answer.status().as_u16(), &*code(&answer)),
                (401, "unauthorized"),
                "{token}"
            );
        }
        assert_eq!(
            show(&server, "/v1/sessions", &good.token(json!({})))
                .await
                .status(),
            200
        );
        assert!(!server.log().contains(claims), "{}", server.log());
    }
    let broken = keys.folder.path().join("broken.json");
    fs::write(&broken, "{\n\"keys\": 1}").unwrap();
    let source = format!("--server.auth.jwt.jwks_file={}", broken.display());
    let issuer = format!("--server.auth.jwt.issuer={ISSUER}");
    let args = [
        "check",
        "--offline",
        "--server.auth.jwt.audience=a",
        &issuer,
        &source,
    ];
    let refused = command().args(args).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("broken.json:2"), "{told}");
}

/// An identity provider's address, which answers with a set or with 500.
struct Provider {
    set: Arc<Mutex<Option<String>>>,
    asked: Arc<Mutex<usize>>,
    url: String,
    _task: JoinSet<()>,
}

impl Provider {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let (set, asked) = (
            Arc::new(Mutex::new(None::<String>)),
            Arc::new(Mutex::new(0)),
        );
        let mut task = JoinSet::new();
        let (answers, count) = (set.clone(), asked.clone());
        task.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                *count.lock().unwrap() += 1;
                let (status, body) = match answers.lock().unwrap().clone() {
                    Some(set) => ("200 OK", set),
                    None => ("500 Internal Server Error", String::new()),
                };
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self {
            set,
            asked,
            url,
            _task: task,
        }
    }

    fn says(&self, set: Option<String>) {
        *self.set.lock().unwrap() = set;
    }

    fn asked(&self) -> usize {
        *self.asked.lock().unwrap()
    }
}

#[tokio::test]
async fn a_provider_that_is_away_is_asked_again_and_keys_work_meanwhile() {
    let keys = Keys::new();
    let provider = Provider::start().await;
    let [old, new] = ["old", "new"].map(|kid| Signer::new(kid, Algorithm::ES256));
    let server = serve(
        &keys,
        &format!("--server.auth.jwt.jwks_url={}", provider.url),
    );
    for _ in 0..3 {
        let away = show(&server, "/v1/sessions", &old.token(json!({}))).await;
        assert_eq!(
            (away.status().as_u16(), &*code(&away)),
            (503, "auth_unavailable")
        );
        let wait: u64 = away.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=30).contains(&wait), "{wait}");
    }
    assert_eq!(
        ask_as(&server, "acme", "GET", "/v1/sessions")
            .await
            .status(),
        200
    );
    assert_eq!(provider.asked(), 1);
    provider.says(Some(set(&[&old])));
    until("the set is fetched", async || {
        let answer = show(&server, "/v1/sessions", &old.token(json!({}))).await;
        (answer.status() == 200).then_some(())
    })
    .await;
    assert_eq!(provider.asked(), 2);
    // A key that is not there asks for the set again, though not at once, and the old one stays.
    provider.says(None);
    assert_eq!(
        show(&server, "/v1/sessions", &new.token(json!({})))
            .await
            .status(),
        401
    );
    assert_eq!(
        show(&server, "/v1/sessions", &old.token(json!({})))
            .await
            .status(),
        200
    );
    assert_eq!(provider.asked(), 2);
}

#[tokio::test]
async fn the_fetched_keys_stay_when_a_reload_changes_what_is_read_from_tokens() {
    let keys = Keys::new();
    let provider = Provider::start().await;
    let signer = Signer::new("one", Algorithm::ES256);
    let file = keys.folder.path().join("serve.yaml");
    let configure = |claim: &str| {
        let jwt = format!(
            "{{issuer: \"{ISSUER}\", audience: fastvideo, jwks_url: \"{}\", tenant_claim: {claim}}}",
            provider.url
        );
        fs::write(&file, format!("server: {{auth: {{jwt: {jwt}}}}}\n")).unwrap();
    };
    configure("tenant");
    provider.says(Some(set(&[&signer])));
    let server = keys.serve(&["--config", file.to_str().unwrap()]);
    let token = signer.token(json!({"org": "not a name"}));
    assert_eq!(show(&server, "/v1/sessions", &token).await.status(), 200);
    provider.says(None);
    configure("org");
    let reloaded = ask_as(&server, "ops", "POST", "/v1/reload").await;
    assert_eq!(reloaded.status(), 200, "{}", reloaded.body());
    assert_eq!(show(&server, "/v1/sessions", &token).await.status(), 401);
    let token = signer.token(json!({"org": "beta"}));
    assert_eq!(show(&server, "/v1/sessions", &token).await.status(), 200);
    assert_eq!(provider.asked(), 1);
}
