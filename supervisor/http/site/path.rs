//! From the path of a request to the files that it can mean.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use super::INDEX;

/// Returns the files that a path can mean, those first that it means rather; none for a path that leads to no file of a site.
pub(super) fn candidates(path: &str) -> Vec<PathBuf> {
    let Some(names) = names(path) else {
        return Vec::new();
    };
    let place: PathBuf = names.iter().collect();
    let Some(last) = names.last() else {
        return vec![INDEX.into()];
    };
    let document = place.with_file_name(format!("{last}.html"));
    let index = place.join(INDEX);
    match path.ends_with('/') {
        true => vec![document, index],
        false => vec![place, document, index],
    }
}

/// Returns the names of which a path consists, decoded.
fn names(path: &str) -> Option<Vec<String>> {
    if path == "/" {
        return Some(Vec::new());
    }
    let path = path.strip_prefix('/')?;
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').map(name).collect()
}

/// Decodes a name. Returns `None` for one that is hidden, leads to another folder, or that no file of a site has.
fn name(encoded: &str) -> Option<String> {
    let name = percent_decode_str(encoded).decode_utf8().ok()?;
    let is_plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
    is_plain.then(|| name.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: &[&str]) {
        let found = candidates(path);
        let found: Vec<&str> = found.iter().map(|it| it.to_str().unwrap()).collect();
        assert_eq!(found, expected, "{path:?}");
    }

    #[test]
    fn a_path_means_a_file_a_document_or_a_folder() {
        check("/", &["index.html"]);
        check("/a", &["a", "a.html", "a/index.html"]);
        check("/a/", &["a.html", "a/index.html"]);
        check("/a/b.js", &["a/b.js", "a/b.js.html", "a/b.js/index.html"]);
        check(
            "/a%20b/%C3%A9",
            &["a b/é", "a b/é.html", "a b/é/index.html"],
        );
        // It is decoded once.
        check("/%252e", &["%2e", "%2e.html", "%2e/index.html"]);
        // A name is not cut at its dots.
        check("/a.b", &["a.b", "a.b.html", "a.b/index.html"]);
    }

    #[test]
    fn no_path_leads_out_of_the_folder_or_to_what_is_hidden() {
        for path in [
            "",
            "*",
            "a",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/.",
            "/..",
            "/../a",
            "/a/../b",
            "/a/..",
            "/a/../",
            "/%2e%2e/a",
            "/.%2E/a",
            "/..%2fa",
            "/..%2Fa",
            "/a%2fb",
            "/%2fetc",
            "/%5c..%5ca",
            "/..\\a",
            "/a\\b",
            "/a%00",
            "/a%00.html",
            "/%ff",
            "/.env",
            "/.git/config",
            "/a/.hidden",
            "/%2eenv",
        ] {
            check(path, &[]);
        }
    }
}
