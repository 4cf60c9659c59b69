//! The route `/ws`: sessions of FastVideo's web UI.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use crate::auth::guard::Admission;
use crate::auth::{Caller, Grant};
use crate::client_address::ClientAddress;
use crate::dialect::dreamverse::{DreamverseParser, DreamverseRenderer};
use crate::http::app::AppState;
use crate::http::stream::{HandshakeFacts, may_hold, upgrade_to};
use crate::ingress::error::ApiError;
use crate::ingress::websocket::Handshake;
use crate::session::{self, NotAdmitted};
use crate::traces;

/// Serves the route `/ws`. Where keys are asked for, who shows none is a guest of the tenant that the operator names, if any.
///
/// A client that there is no room for is told so and held; with too many of these, it is refused.
pub(in crate::http) async fn upgrade(
    State(app): AppState,
    headers: HeaderMap,
    Admission { caller, checked }: Admission,
    Extension(client): Extension<ClientAddress>,
    handshake: Handshake,
) -> Result<Response, ApiError> {
    let config = app.dreamverse.get();
    let known = HandshakeFacts {
        trace: traces::named_by(&headers),
        auth: checked,
        time_limit: config.session,
    };
    let admitted = match (caller, &config.tenant) {
        (Err(why), Some(tenant)) if why.is_without_key => Ok(Caller::guest(tenant.clone())),
        (caller, _) => caller.map_err(NotAdmitted::from),
    };
    if let Ok(caller) = &admitted
        && !may_hold()
    {
        let grant = Grant::new(app.auth.clone(), caller.clone());
        let may_open = session::may_open(client, &grant, &app.registry, &app.context);
        may_open.map_err(|why| {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            ApiError::new(status, "session_rejected", why.to_string())
        })?;
    }
    upgrade_to::<DreamverseParser, DreamverseRenderer>(app, admitted, client, handshake, known)
}
