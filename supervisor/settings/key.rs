//! What a configuration key is, and how a module declares one.
//!
//! ```ignore
//! pub static PORT: Key<u16> = Key::u16("server.port", 0, 65_535)
//!     .short("port")
//!     .help("Port to listen on, 0 for any free one")
//!     .default(8000);
//! ```
//!
//! A key without a default has an optional type, such as `Key<Option<u16>>`. A default outside the key's limits does
//! not compile.

use std::marker::PhantomData;
use std::time::Duration;

use super::kind::{Kind, TimeUnit};
use super::value::DefaultValue;

/// A configuration key whose values have the type `T`.
#[derive(Debug)]
pub struct Key<T> {
    /// The part of the key that does not depend on the type.
    pub spec: KeySpec,
    // Only the constructors below choose it, so that it always fits `spec.kind`.
    value: PhantomData<fn() -> T>,
}

/// The part of a configuration key that is independent of the type of its values: what help, flags, the environment and
/// the file need.
#[derive(Clone, Copy, Debug)]
pub struct KeySpec {
    /// The key's place in the file and, behind `--`, its flag.
    pub path: &'static str,
    /// A shorter flag for the keys that are used most.
    pub short: Option<&'static str>,
    /// Another place that it may have in the file.
    pub alias: Option<&'static str>,
    pub kind: Kind,
    /// The value where no layer gives one; the help text says what holds where there is none.
    pub default: Option<DefaultValue>,
    /// When a value that a reload has read takes effect.
    pub reload: Reload,
    pub help: &'static str,
}

/// When a changed value takes effect that a reload has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// At once.
    AtOnce,
    /// At once where there was a value and still is one; to have one or none takes a restart.
    AtOnceIfGiven,
    /// For sessions and connections that begin later.
    Later,
    /// When the program is started again.
    Restart,
}

impl KeySpec {
    /// Returns the flag by which messages and `--help` name this key.
    pub fn flag(&self) -> &'static str {
        self.short.unwrap_or(self.path)
    }

    /// Returns the name of the environment variable: that of `server.port` is `FASTVIDEO_SERVER__PORT`.
    pub fn variable(&self) -> String {
        format!("FASTVIDEO_{}", self.path.replace('.', "__").to_uppercase())
    }

    /// Returns the path without its last part.
    pub fn section(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or("", |(section, _)| section)
    }

    /// Returns the last part of the path.
    pub fn name(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or(self.path, |(_, name)| name)
    }
}

impl<T> Key<T> {
    const fn of(path: &'static str, kind: Kind) -> Self {
        Self {
            spec: KeySpec {
                path,
                short: None,
                alias: None,
                kind,
                default: None,
                reload: Reload::Restart,
                help: "",
            },
            value: PhantomData,
        }
    }

    /// Adds a shorter flag.
    pub const fn short(mut self, flag: &'static str) -> Self {
        self.spec.short = Some(flag);
        self
    }

    /// Adds another place in the file.
    pub const fn alias(mut self, path: &'static str) -> Self {
        self.spec.alias = Some(path);
        self
    }

    /// Says when a changed value takes effect that a reload has read; without this, after a restart.
    pub const fn reload(mut self, when: Reload) -> Self {
        self.spec.reload = when;
        self
    }

    /// Sets the help text, one sentence without a full stop.
    pub const fn help(mut self, text: &'static str) -> Self {
        self.spec.help = text;
        self
    }

    /// Names the unit of a number.
    pub const fn unit(mut self, name: &'static str) -> Self {
        match &mut self.spec.kind {
            Kind::Whole { unit, .. } | Kind::Decimal { unit, .. } => *unit = name,
            _ => panic!("only plain numbers have a unit of their own"),
        }
        self
    }

    /// Accepts even numbers only.
    pub const fn even(mut self) -> Self {
        match &mut self.spec.kind {
            Kind::Whole { even, .. } => *even = true,
            _ => panic!("only whole numbers are even"),
        }
        self
    }
}

impl<T> Key<Option<T>> {
    const fn or(self, default: DefaultValue) -> Key<T> {
        let Self { mut spec, .. } = self;
        assert!(
            spec.kind.accepts(default),
            "the default is outside the key's limits"
        );
        spec.default = Some(default);
        Key {
            spec,
            value: PhantomData,
        }
    }
}

/// The types of whole numbers: a constructor with the smallest and the largest value, and the default.
macro_rules! whole_numbers {
    ($($whole:ident)*) => {$(
        impl Key<Option<$whole>> {
            /// Creates a key whose value is a whole number from `min` to `max`.
            pub const fn $whole(path: &'static str, min: $whole, max: $whole) -> Self {
                Self::of(path, Kind::Whole { min: min as u64, max: max as u64, even: false, unit: "" })
            }

            /// Sets the value where no layer gives one.
            pub const fn default(self, value: $whole) -> Key<$whole> {
                self.or(DefaultValue::Whole(value as u64))
            }
        }
    )*};
}

whole_numbers!(u8 u16 u32 u64 usize);

impl Key<Option<bool>> {
    /// Creates a key whose value is true or false.
    pub const fn switch(path: &'static str) -> Self {
        Self::of(path, Kind::Switch)
    }

    /// Sets the value where no layer gives one.
    pub const fn default(self, value: bool) -> Key<bool> {
        self.or(DefaultValue::Switch(value))
    }
}

impl Key<Option<f64>> {
    /// Creates a key whose value is a number from `min` to `max`.
    pub const fn f64(path: &'static str, min: f64, max: f64) -> Self {
        let unit = "";
        Self::of(path, Kind::Decimal { min, max, unit })
    }

    /// Sets the value where no layer gives one.
    pub const fn default(self, value: f64) -> Key<f64> {
        self.or(DefaultValue::Decimal(value))
    }
}

impl Key<Option<Duration>> {
    /// Creates a key whose value is a time in milliseconds.
    pub const fn millis(path: &'static str, min: f64, max: f64) -> Self {
        Self::time(path, min, max, TimeUnit::Millis)
    }

    /// Creates a key whose value is a time in seconds.
    pub const fn seconds(path: &'static str, min: f64, max: f64) -> Self {
        Self::time(path, min, max, TimeUnit::Seconds)
    }

    /// Creates a key whose value is a time in days.
    pub const fn days(path: &'static str, min: f64, max: f64) -> Self {
        Self::time(path, min, max, TimeUnit::Days)
    }

    const fn time(path: &'static str, min: f64, max: f64, unit: TimeUnit) -> Self {
        Self::of(path, Kind::Time { min, max, unit })
    }

    /// Sets the value where no layer gives one, in the key's unit.
    pub const fn default(self, value: f64) -> Key<Duration> {
        self.or(DefaultValue::Decimal(value))
    }
}

impl Key<Option<String>> {
    /// Creates a key whose value is any text.
    pub const fn text(path: &'static str) -> Self {
        Self::of(path, Kind::Text)
    }

    /// Creates a key whose value is one of these names.
    pub const fn choice(path: &'static str, names: &'static [&'static str]) -> Self {
        Self::of(path, Kind::Choice(names))
    }

    /// Creates a key whose value is a list of items separated by commas, which the module that owns the key parses; in
    /// the file, a number or a list is accepted, too.
    pub const fn items(
        path: &'static str,
        placeholder: &'static str,
        expected: &'static str,
    ) -> Self {
        let kind = Kind::Items {
            placeholder,
            expected,
        };
        Self::of(path, kind)
    }

    /// Sets the value where no layer gives one.
    pub const fn default(self, value: &'static str) -> Key<String> {
        self.or(DefaultValue::Text(value))
    }
}

impl Key<Option<Vec<serde_json::Value>>> {
    /// Creates a key whose value is a list of anything: a list in the file, or the same in JSON.
    pub const fn json_list(path: &'static str, expected: &'static str) -> Self {
        Self::of(path, Kind::JsonList { expected })
    }
}
