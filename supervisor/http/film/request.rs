//! A request for something of a film, from someone who has a token for it.

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use fastvideo_proto::api::film::FilmQuery;
use fastvideo_proto::ids::SessionId;

use crate::auth::Caller;
use crate::auth::key::is_key;
use crate::http::app::App;
use crate::ingress::error::ApiError;
use crate::ingress::extract::{ValidQuery, bearer};
use crate::store::{FilmView, SessionStore};

/// A request whose token gives access to the film of its session.
pub(in crate::http) struct FilmRequest {
    /// As the caller sees it.
    store: SessionStore,
    pub(super) session: SessionId,
    pub(super) view: FilmView,
    /// The token that was given.
    token: String,
    /// The token, if it came in the query: then what a playlist refers to needs it there too.
    pub(super) query_token: Option<String>,
    /// What the path has for `{file}`.
    pub(super) file: String,
    /// What the path has for `{part}`.
    pub(super) part: String,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
}

impl FromRequestParts<App> for FilmRequest {
    type Rejection = ApiError;

    /// Refuses a request without access as one for a session that does not exist, so that strangers cannot tell which
    /// sessions there are.
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let path = RawPathParams::from_request_parts(parts, app).await;
        let path = path.map_err(|_| ApiError::no_session())?;
        let parameter = |name| {
            path.iter()
                .find_map(|(key, value)| (key == name).then_some(value))
        };
        let session = parameter("id").and_then(SessionId::parse);
        let session = session.ok_or_else(ApiError::no_session)?;
        let file = parameter("file").unwrap_or_default().to_owned();
        let part = parameter("part").unwrap_or_default().to_owned();
        let ValidQuery(FilmQuery { token }) = ValidQuery::from_request_parts(parts, app).await?;
        // A caller that shows a key is held to its tenant, and shows its token in the address.
        let caller = parts.extensions.get::<Caller>();
        let store = caller.map_or_else(|| app.context.store.clone(), |it| app.store_of(it));
        let header = bearer(&parts.headers).filter(|given| !is_key(given));
        let query_token = token.filter(|_| header.is_none());
        let given = header.or(query_token.as_deref()).unwrap_or_default();
        let given = given.to_owned();
        let view = look(&store, &session, &given).await?;
        Ok(Self {
            store,
            session,
            view,
            token: given,
            query_token,
            file,
            part,
            method: parts.method.clone(),
            headers: parts.headers.clone(),
        })
    }
}

impl FilmRequest {
    /// Looks at the film again.
    ///
    /// # Errors
    /// Returns a refusal when the store does not answer, the session is gone, or the token is not valid any more.
    pub(super) async fn look_again(&mut self) -> Result<(), ApiError> {
        self.view = look(&self.store, &self.session, &self.token).await?;
        Ok(())
    }
}

async fn look(
    store: &SessionStore,
    session: &SessionId,
    token: &str,
) -> Result<FilmView, ApiError> {
    let view = store.film(session, token).await;
    let view = view.map_err(|failed| ApiError::store(&failed))?;
    view.ok_or_else(ApiError::no_session)
}
