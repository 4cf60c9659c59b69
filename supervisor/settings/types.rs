//! The types that the values of a key can have.

use std::time::Duration;

use super::kind::{Kind, TimeUnit};
use super::value::Value;

/// A type that the values of a key can have.
pub trait KeyType: Sized {
    /// Converts a value that fits the kind of a key of this type. The value is `None` where the key has none.
    fn of(kind: &Kind, value: Option<&Value>) -> Self;
}

/// The type of a key without a default.
impl<T: KeyType> KeyType for Option<T> {
    fn of(kind: &Kind, value: Option<&Value>) -> Self {
        value.map(|value| T::of(kind, Some(value)))
    }
}

impl KeyType for bool {
    fn of(_kind: &Kind, value: Option<&Value>) -> Self {
        match value {
            Some(Value::Switch(value)) => *value,
            other => mismatch(other),
        }
    }
}

impl KeyType for f64 {
    fn of(_kind: &Kind, value: Option<&Value>) -> Self {
        match value {
            Some(Value::Decimal(value)) => *value,
            other => mismatch(other),
        }
    }
}

impl KeyType for Duration {
    fn of(kind: &Kind, value: Option<&Value>) -> Self {
        match (kind, value) {
            (Kind::Time { unit, .. }, Some(Value::Decimal(number))) => {
                let seconds = match unit {
                    TimeUnit::Millis => number / 1000.0,
                    TimeUnit::Seconds => *number,
                    TimeUnit::Days => number * 86_400.0,
                };
                Self::from_secs_f64(seconds)
            }
            (_, other) => mismatch(other),
        }
    }
}

impl KeyType for String {
    fn of(_kind: &Kind, value: Option<&Value>) -> Self {
        match value {
            Some(Value::Text(text)) => text.clone(),
            other => mismatch(other),
        }
    }
}

impl KeyType for Vec<serde_json::Value> {
    fn of(_kind: &Kind, value: Option<&Value>) -> Self {
        match value {
            Some(Value::List(items)) => items.clone(),
            other => mismatch(other),
        }
    }
}

macro_rules! whole_numbers {
    ($($whole:ident)*) => {$(
        impl KeyType for $whole {
            fn of(_kind: &Kind, value: Option<&Value>) -> Self {
                match value {
                    Some(Value::Whole(n)) => {
                        Self::try_from(*n).expect("the key's limits are of this type")
                    }
                    other => mismatch(other),
                }
            }
        }
    )*};
}

whole_numbers!(u8 u16 u32 u64 usize);

/// Panics, because the value has another type than its key. This cannot happen: the constructors of [`super::Key`] give
/// each type its kind, and those without a default an optional type.
fn mismatch(value: Option<&Value>) -> ! {
    unreachable!("{value:?} is of another type than its key")
}
