//! The context of a trace, as W3C's Trace Context writes it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A span that others can be below, in this process or another one. It is serialized as its `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceContext {
    /// Not zero.
    pub trace_id: u128,
    /// Not zero.
    pub span_id: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

/// The text is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a traceparent: version, trace id, span id and flags in hexadecimal digits, with `-` between them"
)]
pub struct NoTraceParent;

impl FromStr for TraceContext {
    type Err = NoTraceParent;

    /// Reads a `traceparent`, also of a later version, whose further fields are ignored.
    fn from_str(text: &str) -> Result<Self, NoTraceParent> {
        let mut fields = text.split('-');
        let mut field = |digits: usize| {
            let field = fields.next().ok_or(NoTraceParent)?;
            let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            match field.len() == digits && field.bytes().all(is_hex) {
                true => u128::from_str_radix(field, 16).map_err(|_| NoTraceParent),
                false => Err(NoTraceParent),
            }
        };
        let (version, trace_id) = (field(2)?, field(32)?);
        let (span_id, flags) = (field(16)?, field(2)?);
        let has_more = fields.next().is_some();
        let span_id = u64::try_from(span_id).map_err(|_| NoTraceParent)?;
        if version == 0xff || version == 0 && has_more || trace_id == 0 || span_id == 0 {
            return Err(NoTraceParent);
        }
        Ok(Self {
            trace_id,
            span_id,
            sampled: flags & 1 == 1,
        })
    }
}

impl TryFrom<String> for TraceContext {
    type Error = NoTraceParent;

    fn try_from(text: String) -> Result<Self, NoTraceParent> {
        text.parse()
    }
}

impl From<TraceContext> for String {
    fn from(context: TraceContext) -> Self {
        context.to_string()
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(
            f,
            "00-{:032x}-{:016x}-{flags:02x}",
            self.trace_id, self.span_id
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_and_written() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert_eq!(context.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(context.span_id, 0xb7ad_6b71_6920_3331);
        assert!(context.sampled);
        assert_eq!(context.to_string(), TEXT);
        assert_eq!(serde_json::to_value(context).unwrap(), TEXT);
        let later = format!("01{}-extra", &TEXT[2..]);
        assert_eq!(later.parse(), Ok(context));
        let not = TEXT.replace("-01", "-02").parse::<TraceContext>().unwrap();
        assert!(!not.sampled);
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        let zeros = "0".repeat(32);
        for text in [
            "",
            "00",
            &TEXT[..54],
            &format!("{TEXT}-extra"),
            &TEXT.replace("00-", "ff-"),
            &TEXT.replace('a', "A"),
            &TEXT.replace("0af7651916cd43dd8448eb211c80319c", &zeros),
            &TEXT.replace("b7ad6b7169203331", "0000000000000000"),
            &TEXT.replace("b7ad", "b7xd"),
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(NoTraceParent), "{text}");
        }
    }
}
