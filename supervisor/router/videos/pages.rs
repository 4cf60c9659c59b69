//! Lists of videos and models of several servers as one. It is arithmetic: nothing is asked here.

use std::collections::HashSet;
use std::collections::btree_map::{BTreeMap, Entry as Place};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use url::form_urlencoded;

/// How many videos a page has if the client does not tell.
const DEFAULT_PAGE: usize = 20;

/// What a client wants of a list. What it may want is checked by the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    limit: usize,
    is_ascending: bool,
}

/// A page of a server's list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    data: Vec<Item>,
    #[serde(default)]
    has_more: bool,
}

/// A page of the list of all servers, as [`VideoList`](fastvideo_proto::api::videos::VideoList) describes it.
#[derive(Debug, Serialize)]
pub(super) struct MergedPage {
    object: &'static str,
    data: Vec<Item>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreachable: Vec<String>,
}

/// The models of all servers, as [`ModelList`](fastvideo_proto::api::videos::ModelList) describes them.
#[derive(Debug, Serialize)]
pub(super) struct MergedModels {
    object: &'static str,
    data: Vec<Item>,
}

/// A video or a model in a server's own words, which may be those of another version.
#[derive(Clone, Debug)]
struct Item {
    facts: Facts,
    text: Box<RawValue>,
}

/// What is looked at of an item.
#[derive(Clone, Debug, Deserialize)]
struct Facts {
    id: String,
    status: Option<String>,
    progress: Option<f64>,
}

impl Wanted {
    /// Reads the query of `GET /v1/videos`.
    pub(super) fn read(query: Option<&str>) -> Self {
        let query = query.unwrap_or_default().as_bytes();
        let first = |name: &str| {
            let mut pairs = form_urlencoded::parse(query);
            pairs.find(|(key, _)| key == name).map(|(_, value)| value)
        };
        Self {
            limit: first("limit")
                .and_then(|limit| limit.parse().ok())
                .unwrap_or(DEFAULT_PAGE),
            is_ascending: first("order").is_some_and(|order| order == "asc"),
        }
    }
}

impl MergedPage {
    /// Merges what servers have answered to the same request. Each page begins after the same id and is as long as the client
    /// wants it, or has all that its server has; so no video is missing between those that the pages have. `unreachable` names
    /// the servers that did not answer.
    pub(super) fn of(pages: Vec<Page>, wanted: Wanted, unreachable: Vec<String>) -> Self {
        let is_cut = pages.iter().any(|page| page.has_more);
        let mut videos: BTreeMap<String, Item> = BTreeMap::new();
        for item in pages.into_iter().flat_map(|page| page.data) {
            match videos.entry(item.facts.id.clone()) {
                Place::Vacant(place) => {
                    place.insert(item);
                }
                // The server that makes a video knows its progress better than others with the same store.
                Place::Occupied(mut place) if item.facts.are_further_than(&place.get().facts) => {
                    place.insert(item);
                }
                Place::Occupied(_) => {}
            }
        }
        let has_more = is_cut || videos.len() > wanted.limit;
        let mut data: Vec<Item> = videos.into_values().collect();
        if !wanted.is_ascending {
            data.reverse();
        }
        data.truncate(wanted.limit);
        let id = |item: Option<&Item>| item.map(|item| item.facts.id.clone());
        Self {
            object: "list",
            first_id: id(data.first()),
            last_id: id(data.last()),
            data,
            has_more,
            unreachable,
        }
    }
}

impl MergedModels {
    /// Merges what servers have answered; the first one's words are taken for a model.
    pub(super) fn of(pages: Vec<Page>) -> Self {
        let mut data: Vec<Item> = pages.into_iter().flat_map(|page| page.data).collect();
        let mut seen = HashSet::new();
        data.retain(|item| seen.insert(item.facts.id.clone()));
        Self {
            object: "list",
            data,
        }
    }
}

impl Facts {
    /// Returns whether these are the later ones of a video.
    fn are_further_than(&self, other: &Self) -> bool {
        let is_end = |facts: &Self| matches!(facts.status.as_deref(), Some("completed" | "failed"));
        match (is_end(self), is_end(other)) {
            (one, another) if one != another => one,
            _ => self.progress > other.progress,
        }
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let facts = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        Ok(Self { facts, text })
    }
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn page(value: &Value) -> Page {
        serde_json::from_str(&value.to_string()).unwrap()
    }

    fn text(merged: &impl Serialize) -> Value {
        serde_json::to_value(merged).unwrap()
    }

    /// What a server that has these videos answers.
    fn answer(videos: &BTreeSet<u8>, wanted: Wanted, after: Option<u8>) -> Value {
        let follows = |id: &&u8| match after {
            Some(after) if wanted.is_ascending => **id > after,
            Some(after) => **id < after,
            None => true,
        };
        let mut ids: Vec<u8> = videos.iter().filter(follows).copied().collect();
        if !wanted.is_ascending {
            ids.reverse();
        }
        let has_more = ids.len() > wanted.limit;
        ids.truncate(wanted.limit);
        let name = |id: &u8| format!("video_{id:03}");
        let data: Vec<_> = ids.iter().map(|id| json!({"id": name(id)})).collect();
        json!({
            "object": "list", "data": data, "has_more": has_more,
            "first_id": ids.first().map(name), "last_id": ids.last().map(name),
        })
    }

    proptest! {
        #[test]
        fn a_merged_page_is_that_of_a_server_that_has_all_videos(
            servers in proptest::collection::vec(proptest::collection::btree_set(any::<u8>(), 0..40), 1..5),
            limit in 1_usize..12,
            is_ascending in any::<bool>(),
            after in any::<Option<u8>>(),
        ) {
            let wanted = Wanted { limit, is_ascending };
            let all: BTreeSet<u8> = servers.iter().flatten().copied().collect();
            let pages = servers.iter().map(|videos| page(&answer(videos, wanted, after)));
            let merged = MergedPage::of(pages.collect(), wanted, Vec::new());
            prop_assert_eq!(text(&merged), answer(&all, wanted, after));
        }
    }

    #[test]
    fn of_two_answers_for_a_video_the_later_one_is_shown() {
        let wanted = Wanted::read(None);
        let of = |status: &str, progress: u32| {
            page(&json!({"data": [{"id": "a", "status": status, "progress": progress}]}))
        };
        let check = |first: (&str, u32), second: (&str, u32), expected: (&str, u32)| {
            let pages = vec![of(first.0, first.1), of(second.0, second.1)];
            let shown = text(&MergedPage::of(pages, wanted, Vec::new()))["data"][0].clone();
            let expected = json!({"id": "a", "status": expected.0, "progress": expected.1});
            assert_eq!(shown, expected);
        };
        let (behind, ahead) = (("in_progress", 30), ("in_progress", 42));
        check(behind, ahead, ahead);
        check(ahead, behind, ahead);
        check(ahead, ("failed", 0), ("failed", 0));
        check(("completed", 100), ahead, ("completed", 100));
    }

    #[test]
    fn videos_are_passed_on_in_their_servers_words() {
        let words = r#"{"id": "a", "seed":18446744073709551615, "new": 1.50}"#;
        let list = format!(r#"{{"object": "list", "data": [{words}], "has_more": false}}"#);
        let pages = vec![serde_json::from_str(&list).unwrap()];
        let merged = MergedPage::of(pages, Wanted::read(None), vec!["b".to_owned()]);
        let merged = serde_json::to_string(&merged).unwrap();
        assert!(merged.contains(words), "{merged}");
        assert!(merged.ends_with(r#""unreachable":["b"]}"#), "{merged}");
    }

    #[test]
    fn a_model_is_listed_once() {
        let of = |ids: &[&str]| {
            let data: Vec<_> = ids.iter().map(|id| json!({"id": id})).collect();
            page(&json!({"object": "list", "data": data}))
        };
        let merged = MergedModels::of(vec![of(&["b", "a"]), of(&[]), of(&["a", "c"])]);
        let expected = json!({"object": "list", "data": [{"id": "b"}, {"id": "a"}, {"id": "c"}]});
        assert_eq!(text(&merged), expected);
    }

    #[test]
    fn a_page_is_wanted_as_servers_read_it() {
        let check = |query, limit, is_ascending| {
            let expected = Wanted {
                limit,
                is_ascending,
            };
            assert_eq!(Wanted::read(query), expected, "{query:?}");
        };
        check(None, 20, false);
        check(Some("limit=5&order=asc&limit=6"), 5, true);
        check(Some("order=desc&after=x&limit=%31"), 1, false);
    }
}
