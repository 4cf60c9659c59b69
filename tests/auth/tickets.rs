//! Tickets: a page shows one in an address, once.

use fastvideo_proto::api::tickets::Ticket;

use super::*;

async fn ticket(server: &Server, who: &str) -> Ticket {
    let answer = ask_as(server, who, "POST", "/v1/tickets").await;
    assert_eq!(answer.status(), 201, "{}", answer.body());
    serde_json::from_str(answer.body()).unwrap()
}

fn path(ticket: &str) -> String {
    format!("/v1/stream?ticket={ticket}")
}

/// What a client without a browser is answered that shows a ticket.
async fn status(server: &Server, ticket: &str) -> u16 {
    let connected = connect(server, &path(ticket), &[]).await;
    connected
        .map_or_else(|no| no.status(), |(_, yes)| yes.status())
        .as_u16()
}

#[tokio::test]
async fn a_ticket_opens_one_session_of_its_keys_tenant() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let Ticket { ticket, expires_in } = ticket(&server, "acme").await;
    assert_eq!(expires_in, 60);
    let (mut client, _) = connect(&server, &path(&ticket), &[]).await.unwrap();
    client.send(json!({"type": "session_init_v2"})).await;
    client.until_type("gpu_assigned").await;
    let list = ask_as(&server, "acme", "GET", "/v1/sessions").await;
    assert!(list.body().contains("session_id"));
    assert_eq!(status(&server, &ticket).await, 401, "it was used");
    let (head, _) = ticket.split_once('.').unwrap();
    for wrong in ["", "fvt_", head, &format!("{ticket}x"), &key("acme")] {
        assert_eq!(status(&server, wrong).await, 401, "{wrong:?}");
    }
    // It is for sessions alone.
    let answer = ask(
        &server,
        "GET",
        &format!("/v1/sessions?ticket={ticket}"),
        &[],
    )
    .await;
    assert_eq!(answer.status(), 401);
    assert!(!server.log().contains(head), "{}", server.log());
}

#[tokio::test]
async fn a_ticket_ends_with_its_key() {
    let mut keys = Keys::new();
    let server = keys.serve(&[]);
    let Ticket { ticket, .. } = ticket(&server, "acme").await;
    keys.lines.retain(|(id, ..)| *id != "acme");
    keys.write();
    server.signal(Signal::SIGHUP);
    until("the keys are reloaded", async || {
        let answer = ask_as(&server, "acme", "GET", "/v1/sessions").await;
        (answer.status() == 401).then_some(())
    })
    .await;
    assert_eq!(status(&server, &ticket).await, 401);
}

#[tokio::test]
async fn servers_with_one_secret_take_each_others_tickets() {
    let keys = Keys::new();
    let secret = keys.folder.path().join("secret");
    fs::write(&secret, "s".repeat(40)).unwrap();
    let shared = format!("--server.auth.ticket_key_file={}", secret.display());
    let (one, two) = (keys.serve(&[&shared]), keys.serve(&[&shared]));
    let given = ticket(&one, "acme").await;
    assert_eq!(status(&two, &given.ticket).await, 101);
    let other = keys.serve(&[]);
    assert_eq!(
        status(&other, &ticket(&one, "acme").await.ticket).await,
        401
    );
}

#[tokio::test]
async fn a_secret_that_is_taken_away_is_worth_nothing_and_a_servers_own_stays() {
    let keys = Keys::new();
    let [secret, file] = ["secret", "serve.yaml"].map(|name| keys.folder.path().join(name));
    fs::write(&secret, "s".repeat(40)).unwrap();
    let configure = |text: &str| fs::write(&file, text).unwrap();
    configure(&format!(
        "server: {{auth: {{ticket_key_file: {}}}}}\n",
        secret.display()
    ));
    let server = keys.serve(&["--config", file.to_str().unwrap()]);
    let reload = async |changed: Value| {
        let answer = ask_as(&server, "ops", "POST", "/v1/reload").await;
        let body: Value = serde_json::from_str(answer.body()).unwrap();
        assert_eq!(body["changed"], changed);
    };
    let shared = ticket(&server, "acme").await.ticket;
    configure("");
    reload(json!(["server.auth.ticket_key_file"])).await;
    assert_eq!(status(&server, &shared).await, 401);
    let own = ticket(&server, "acme").await.ticket;
    reload(json!([])).await;
    assert_eq!(status(&server, &own).await, 101);
}

#[tokio::test]
async fn without_keys_there_are_no_tickets() {
    let server = Server::start(&["--gpus=1"]);
    let (status, body) = server.post("/v1/tickets").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (409, &json!("no_tickets"))
    );
}
