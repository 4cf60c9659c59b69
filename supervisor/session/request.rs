//! A client's request for a segment, checked.

use std::time::Duration;

use fastvideo_proto::adapter::{
    Adapter, AdapterChoice, MAX_ADAPTER_NAME, MAX_ADAPTERS, MAX_STRENGTH,
};
use fastvideo_proto::checkpoint::Ask;
use fastvideo_proto::job::PromptSource;
use fastvideo_proto::trace::TraceContext;

use super::command::SegmentRequest;
use super::{ClientLimits, Config};
use crate::engines::default_request::MAX_GUIDANCE;

/// A request that the server can pass to a worker: every field is set and within its limits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidRequest {
    pub(crate) prompt: String,
    pub(crate) negative_prompt: Option<String>,
    pub(crate) source: PromptSource,
    pub(crate) seed: u64,
    pub(crate) num_inference_steps: u32,
    pub(crate) guidance_scale: f64,
    /// The adapters that act from this segment on; `None` leaves them as they are.
    pub(crate) adapters: Option<Vec<Adapter>>,
    /// The span that the segment is below.
    pub(crate) trace_parent: Option<TraceContext>,
}

/// Why a request is invalid. The text names the field, the limit and the value given; it is safe to show to the client.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum InvalidRequest {
    #[error("`{field}` is empty")]
    Empty { field: &'static str },
    #[error("`{field}` has {given} characters, at most {limit} are allowed")]
    TooLong {
        field: &'static str,
        limit: usize,
        given: usize,
    },
    #[error("`num_inference_steps` must be from 1 to {limit}, got {given}")]
    Steps { limit: u32, given: u32 },
    #[error("`guidance_scale` must be from 0 to {MAX_GUIDANCE}, got {given}")]
    Guidance { given: f64 },
    #[error("`adapters` has {given} entries, at most {MAX_ADAPTERS} are allowed")]
    TooManyAdapters { given: usize },
    #[error("`adapters`: `{name}` is not one of this server's adapters ({known})")]
    UnknownAdapter { name: String, known: String },
    #[error("`adapters`: `{name}` is named twice")]
    AdapterTwice { name: String },
    #[error(
        "`adapters`: the strength of `{name}` must be from -{MAX_STRENGTH} to {MAX_STRENGTH}, got {given}"
    )]
    AdapterStrength { name: String, given: f64 },
}

impl ValidRequest {
    pub(crate) fn check(
        request: SegmentRequest,
        config: &Config,
        limits: &ClientLimits,
        offered: &[Adapter],
    ) -> Result<Self, InvalidRequest> {
        check_prompt("prompt", &request.prompt, limits)?;
        if let Some(negative) = &request.negative_prompt {
            check_length("negative_prompt", negative, limits)?;
        }
        let steps = request
            .num_inference_steps
            .unwrap_or(config.num_inference_steps);
        if !(1..=limits.max_inference_steps).contains(&steps) {
            return Err(InvalidRequest::Steps {
                limit: limits.max_inference_steps,
                given: steps,
            });
        }
        let guidance_scale = request.guidance_scale.unwrap_or(config.guidance_scale);
        if !(0.0..=MAX_GUIDANCE).contains(&guidance_scale) {
            return Err(InvalidRequest::Guidance {
                given: guidance_scale,
            });
        }
        let adapters = request.adapters;
        let adapters = adapters.map(|choices| check_adapters(choices, offered));
        Ok(Self {
            adapters: adapters.transpose()?,
            prompt: request.prompt,
            negative_prompt: request
                .negative_prompt
                .or_else(|| config.negative_prompt.clone()),
            source: request.source,
            seed: request.seed.unwrap_or(config.seed),
            num_inference_steps: steps,
            guidance_scale,
            trace_parent: request.trace_parent,
        })
    }

    /// Creates a request for a curated prompt, with the operator's defaults. The prompt was checked when the list came
    /// in.
    pub(crate) fn curated(prompt: String, config: &Config) -> Self {
        Self::by_itself(prompt, PromptSource::Curated, config)
    }

    /// Creates a request for an extension, with the operator's defaults.
    pub(crate) fn extension(prompt: String, config: &Config) -> Self {
        Self::by_itself(prompt, PromptSource::AutoExtension, config)
    }

    /// Drops the adapters that are not among those on offer any more, and returns their names.
    pub(crate) fn drop_adapters(&mut self, offered: &[Adapter]) -> Vec<String> {
        let chosen = self.adapters.iter_mut().flat_map(|adapters| {
            let is_gone = |it: &mut Adapter| !offered.iter().any(|other| other.name == it.name);
            adapters.extract_if(.., is_gone)
        });
        chosen.map(|adapter| adapter.name).collect()
    }

    /// Returns whether the client says that a model has written the prompt.
    pub(crate) fn is_written_by_model(&self) -> bool {
        matches!(
            self.source,
            PromptSource::Enhanced | PromptSource::AutoExtension
        )
    }

    /// Writes down what is asked, without the client's name for it.
    pub(crate) fn write(&self, waited: Duration) -> Ask {
        Ask {
            id: None,
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            source: self.source,
            seed: self.seed,
            num_inference_steps: self.num_inference_steps,
            guidance_scale: self.guidance_scale,
            adapters: self.adapters.clone(),
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            trace_parent: self.trace_parent,
        }
    }

    /// Reads what was written down by a server of the same kind.
    pub(crate) fn read(ask: &Ask) -> Self {
        Self {
            prompt: ask.prompt.clone(),
            negative_prompt: ask.negative_prompt.clone(),
            source: ask.source,
            seed: ask.seed,
            num_inference_steps: ask.num_inference_steps,
            guidance_scale: ask.guidance_scale,
            adapters: ask.adapters.clone(),
            trace_parent: ask.trace_parent,
        }
    }

    pub(super) fn by_itself(prompt: String, source: PromptSource, config: &Config) -> Self {
        Self {
            prompt,
            negative_prompt: config.negative_prompt.clone(),
            source,
            seed: config.seed,
            num_inference_steps: config.num_inference_steps,
            guidance_scale: config.guidance_scale,
            adapters: None,
            trace_parent: None,
        }
    }
}

/// Like [`check_adapters`], for a session that goes on: an adapter may have been unloaded since, or the server that the
/// session comes from may have had it. The session's next segment tells the client.
pub(crate) fn check_former_adapters(
    choices: Vec<AdapterChoice>,
    offered: &[Adapter],
) -> Result<Vec<Adapter>, InvalidRequest> {
    let is_new = |choice: &AdapterChoice| !offered.iter().any(|it| it.name == choice.name);
    let former = choices
        .iter()
        .filter(|choice| is_new(choice) && choice.name.len() <= MAX_ADAPTER_NAME);
    let former = former.map(|choice| Adapter {
        name: choice.name.clone(),
        strength: 1.0,
    });
    let known: Vec<Adapter> = offered.iter().cloned().chain(former).collect();
    check_adapters(choices, &known)
}

/// Checks a client's choice of adapters: they must be among those that the server offers, and strengths must be within
/// their limits.
pub(crate) fn check_adapters(
    choices: Vec<AdapterChoice>,
    offered: &[Adapter],
) -> Result<Vec<Adapter>, InvalidRequest> {
    if choices.len() > MAX_ADAPTERS {
        let given = choices.len();
        return Err(InvalidRequest::TooManyAdapters { given });
    }
    let mut adapters: Vec<Adapter> = Vec::new();
    for AdapterChoice { name, strength } in choices {
        let Some(adapter) = offered.iter().find(|adapter| adapter.name == name) else {
            return Err(InvalidRequest::UnknownAdapter {
                name: shortened(&name),
                known: known_adapters(offered),
            });
        };
        if adapters.iter().any(|adapter| adapter.name == name) {
            return Err(InvalidRequest::AdapterTwice { name });
        }
        let strength = strength.unwrap_or(adapter.strength);
        if !(-MAX_STRENGTH..=MAX_STRENGTH).contains(&strength) {
            return Err(InvalidRequest::AdapterStrength {
                name,
                given: strength,
            });
        }
        adapters.push(Adapter { name, strength });
    }
    Ok(adapters)
}

/// The number of characters of an unknown name that a message repeats.
const MAX_REPEATED: usize = 64;

fn shortened(name: &str) -> String {
    name.chars().take(MAX_REPEATED).collect()
}

fn known_adapters(offered: &[Adapter]) -> String {
    let names: Vec<&str> = offered.iter().map(|a| a.name.as_str()).collect();
    match names.is_empty() {
        true => "it has none".to_owned(),
        false => names.join(", "),
    }
}

/// Checks that a prompt is not blank and stays within the limit.
pub(crate) fn check_prompt(
    field: &'static str,
    prompt: &str,
    limits: &ClientLimits,
) -> Result<(), InvalidRequest> {
    if prompt.trim().is_empty() {
        return Err(InvalidRequest::Empty { field });
    }
    check_length(field, prompt, limits)
}

fn check_length(
    field: &'static str,
    text: &str,
    limits: &ClientLimits,
) -> Result<(), InvalidRequest> {
    let given = text.chars().count();
    let limit = limits.max_prompt_chars;
    if given > limit {
        return Err(InvalidRequest::TooLong {
            field,
            limit,
            given,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::config;

    fn request(prompt: &str) -> SegmentRequest {
        SegmentRequest {
            prompt: prompt.to_owned(),
            ..SegmentRequest::default()
        }
    }

    #[track_caller]
    fn check(request: SegmentRequest, expected: &str) {
        let checked = ValidRequest::check(request, &config(), &config().limits, &[]);
        let error = checked.unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn nulls_take_the_operators_defaults() {
        let valid = ValidRequest::check(request("a fox"), &config(), &config().limits, &[]);
        let valid = valid.unwrap();
        assert_eq!((valid.seed, valid.num_inference_steps), (10, 8));
        assert_eq!(valid.source, PromptSource::User);
    }

    #[test]
    fn a_request_that_was_written_down_is_read_as_it_was() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let asked = SegmentRequest {
            trace_parent: Some(parent.parse().unwrap()),
            ..request("a fox")
        };
        let valid = ValidRequest::check(asked, &config(), &config().limits, &[]);
        let mut valid = valid.unwrap();
        valid.adapters = Some(vec![Adapter {
            name: "toon".to_owned(),
            strength: 0.1 + 0.2,
        }]);
        let text = serde_json::to_string(&valid.write(Duration::ZERO)).unwrap();
        let read: Ask = serde_json::from_str(&text).unwrap();
        assert_eq!(ValidRequest::read(&read), valid);
    }

    #[test]
    fn what_is_out_of_range_is_named_with_its_limit() {
        check(request(" \n"), "`prompt` is empty");
        check(
            request(&"x".repeat(4001)),
            "`prompt` has 4001 characters, at most 4000 are allowed",
        );
        let steps = |n| SegmentRequest {
            num_inference_steps: Some(n),
            ..request("x")
        };
        check(
            steps(0),
            "`num_inference_steps` must be from 1 to 200, got 0",
        );
        check(
            steps(201),
            "`num_inference_steps` must be from 1 to 200, got 201",
        );
        for (given, text) in [
            (f64::INFINITY, "inf"),
            (f64::NAN, "NaN"),
            (-1.0, "-1"),
            (100.5, "100.5"),
        ] {
            let guidance = SegmentRequest {
                guidance_scale: Some(given),
                ..request("x")
            };
            let expected = format!("`guidance_scale` must be from 0 to 100, got {text}");
            check(guidance, &expected);
        }
        let negative = SegmentRequest {
            negative_prompt: Some("é".repeat(4001)),
            ..request("x")
        };
        check(
            negative,
            "`negative_prompt` has 4001 characters, at most 4000 are allowed",
        );
    }

    #[test]
    fn adapters_are_those_of_the_server() {
        let adapter = |name: &str, strength| Adapter {
            name: name.to_owned(),
            strength,
        };
        let offered = [adapter("toon", 0.8), adapter("fade", 1.0)];
        let choice = |name: &str, strength| AdapterChoice {
            name: name.to_owned(),
            strength,
        };
        let checked = |choices: &[AdapterChoice]| check_adapters(choices.to_vec(), &offered);
        let adapters = checked(&[choice("fade", Some(-2.0)), choice("toon", None)]).unwrap();
        let strengths: Vec<f64> = adapters.iter().map(|adapter| adapter.strength).collect();
        assert_eq!(strengths, [-2.0, 0.8]);
        let told = |choices: &[AdapterChoice]| checked(choices).unwrap_err().to_string();
        assert_eq!(
            told(&[choice("../x", None)]),
            "`adapters`: `../x` is not one of this server's adapters (toon, fade)"
        );
        assert_eq!(
            told(&[choice("toon", None), choice("toon", Some(0.0))]),
            "`adapters`: `toon` is named twice"
        );
        assert_eq!(
            told(&[choice("toon", Some(f64::NAN))]),
            "`adapters`: the strength of `toon` must be from -2 to 2, got NaN"
        );
        assert_eq!(
            told(&vec![choice("toon", None); 9]),
            "`adapters` has 9 entries, at most 8 are allowed"
        );
        let none = check_adapters(vec![choice("toon", None)], &[]);
        assert!(none.unwrap_err().to_string().ends_with("(it has none)"));

        let mut valid = ValidRequest {
            adapters: Some(adapters),
            ..ValidRequest::curated("a fox".to_owned(), &config())
        };
        assert_eq!(valid.drop_adapters(&offered), Vec::<String>::new());
        assert_eq!(valid.drop_adapters(&offered[..1]), ["fade"]);
        assert_eq!(valid.adapters, Some(vec![adapter("toon", 0.8)]));
    }
}
