//! What a router serves besides sessions: the built-in page.

use crate::router::{KEY, Keys};

#[tokio::test]
async fn a_router_serves_the_page_of_a_server() {
    let keys = Keys::new(KEY);
    let server = keys.server(&[]);
    let router = keys.router(&[&server.address], &[]);
    for path in ["/", "/watch", "/page.css", "/page.js", "/player/feeder.js"] {
        let [at_server, at_router] = [&server, &router].map(|it| it.request("GET", path, None));
        let (at_server, at_router) = (at_server.await, at_router.await);
        assert_eq!(at_router.status(), 200, "{path}");
        for header in ["content-type", "content-security-policy", "cache-control"] {
            assert_eq!(at_router.headers()[header], at_server.headers()[header]);
        }
        assert!(at_router.body() == at_server.body(), "{path}");
    }
}
