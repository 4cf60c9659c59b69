//! Addresses of services on the web, as operators give them.

use url::Url;

/// What [`web_address`] accepts, for error messages.
pub(crate) const WEB_ADDRESS: &str = "an http:// or https:// address without user and password";

/// Parses an address such as `https://example.org/path`.
///
/// # Errors
/// Returns what was given instead, without a password that may be in it.
pub(crate) fn web_address(given: &str) -> Result<Url, String> {
    let Ok(url) = Url::parse(given) else {
        return Err("no address".to_owned());
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an address with a user".to_owned());
    }
    match matches!(url.scheme(), "http" | "https") && url.has_host() {
        true => Ok(url),
        false => Err(format!("{given:?}")),
    }
}
