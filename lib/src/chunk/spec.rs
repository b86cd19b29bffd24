//! The name of a chunker with its parameters, as it stands in chunk indexes, in attributes and on the command line.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};

/// Which chunker, with all its parameters, in bytes.
///
/// [`FromStr`] checks the parameters; whoever makes a value by hand calls [`check`](Self::check). Text: `gear:min=16384,avg=65536,max=262144`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChunkerSpec {
    /// Content-defined cuts by our gear hash (`docs/formats/chunker-gear.md`).
    Gear {
        /// Shortest chunk, but for the last of a stream.
        min: u32,
        /// Length where cuts begin to be easy; a power of two.
        avg: u32,
        /// Longest chunk.
        max: u32,
    },
    /// Content-defined cuts that equal those of librabinpoly (`docs/formats/chunker-rabin.md`).
    Rabin {
        /// Bytes that a cut depends on.
        window: u32,
        /// Mean distance of cuts, rounded down to a power of two, past the shortest length.
        avg: u32,
        /// Shortest chunk, but for the last of a stream.
        min: u32,
        /// Longest chunk.
        max: u32,
    },
    /// Cuts at multiples of a size, for block devices.
    Fixed {
        /// Length of every chunk but the last.
        size: u32,
    },
}

/// No chunk is longer; a reader may count on it when it allocates.
const LONGEST: u32 = 16 << 20;

/// No average and no fixed size is less; chunks so small are all overhead, and good for tests only.
const SHORTEST: u32 = 64;

impl ChunkerSpec {
    /// Returns the length that no chunk exceeds: what [`Chunker::cut`](super::Chunker::cut) must see to decide.
    pub fn max_len(&self) -> usize {
        match *self {
            Self::Gear { max, .. } | Self::Rabin { max, .. } => max as usize,
            Self::Fixed { size } => size as usize,
        }
    }

    /// Returns these parameters if they are in bounds; the error tells the bounds.
    pub fn check(self) -> Result<Self> {
        let is_ordered = |min, avg, max| min <= avg && avg <= max && max <= LONGEST;
        let broken = match self {
            Self::Gear { min, avg, max } if min < SHORTEST || !is_ordered(min, avg, max) => "64 <= min <= avg <= max <= 16777216",
            Self::Gear { avg, .. } if !avg.is_power_of_two() => "avg a power of two",
            Self::Rabin { window, .. } if !(16..=256).contains(&window) => "16 <= window <= 256",
            Self::Rabin { avg, min, max, .. } if min < 1 || avg < SHORTEST || !is_ordered(min, avg, max) => {
                "1 <= min <= avg <= max <= 16777216 and 64 <= avg"
            }
            Self::Fixed { size } if !(SHORTEST..=LONGEST).contains(&size) => "64 <= size <= 16777216",
            _ => return Ok(self),
        };
        Err(Error::new(Kind::Usage, format!("chunker '{self}' is out of bounds; it must have {broken}")))
    }

    /// Returns the parameters in the order in which they are written.
    fn parameters(&self) -> Vec<(&'static str, u32)> {
        match *self {
            Self::Gear { min, avg, max } => vec![("min", min), ("avg", avg), ("max", max)],
            Self::Rabin { window, avg, min, max } => vec![("window", window), ("avg", avg), ("min", min), ("max", max)],
            Self::Fixed { size } => vec![("size", size)],
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Gear { .. } => "gear",
            Self::Rabin { .. } => "rabin",
            Self::Fixed { .. } => "fixed",
        }
    }
}

impl Default for ChunkerSpec {
    /// Returns `gear:min=16384,avg=65536,max=262144`.
    fn default() -> Self {
        Self::Gear { min: 16 << 10, avg: 64 << 10, max: 256 << 10 }
    }
}

impl fmt::Display for ChunkerSpec {
    /// Writes all parameters in the canonical order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        for (i, (key, value)) in self.parameters().into_iter().enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

impl FromStr for ChunkerSpec {
    type Err = Error;

    /// Accepts a name, or a name, a colon and `key=value` in any order, separated by commas.
    ///
    /// A key left out has its default. Where `avg` is given, the defaults of `min` and `max` keep their proportion to it.
    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let mut values = Values::parse(text, rest)?;
        let spec = match name {
            "gear" => {
                let avg = values.take("avg", 64 << 10);
                Self::Gear {
                    min: values.take("min", (avg / 4).max(SHORTEST)),
                    avg,
                    max: values.take("max", avg.saturating_mul(4).min(LONGEST)),
                }
            }
            "rabin" => {
                let avg = values.take("avg", 64 << 10);
                Self::Rabin {
                    window: values.take("window", 32),
                    avg,
                    min: values.take("min", (avg / 2).max(1)),
                    max: values.take("max", avg.saturating_mul(2).min(LONGEST)),
                }
            }
            "fixed" => Self::Fixed { size: values.take("size", 4 << 20) },
            _ => return Err(malformed(text, format_args!("'{name}' is not one of gear, rabin, fixed"))),
        };
        values.expect_none_left(text, &spec)?;
        spec.check()
    }
}

/// The `key=value` pairs of a text that were not asked for yet.
struct Values<'a>(Vec<(&'a str, u32)>);

impl<'a> Values<'a> {
    fn parse(text: &str, list: Option<&'a str>) -> Result<Self> {
        let mut values: Vec<(&str, u32)> = Vec::new();
        for pair in list.into_iter().flat_map(|list| list.split(',')) {
            let (key, value) = pair.split_once('=').ok_or_else(|| malformed(text, format_args!("'{pair}' is not key=value")))?;
            let value = number(value).ok_or_else(|| malformed(text, format_args!("'{value}' is not a number of bytes")))?;
            if values.iter().any(|(known, _)| *known == key) {
                return Err(malformed(text, format_args!("'{key}' stands twice")));
            }
            values.push((key, value));
        }
        Ok(Self(values))
    }

    fn take(&mut self, key: &str, default: u32) -> u32 {
        match self.0.iter().position(|(known, _)| *known == key) {
            Some(at) => self.0.swap_remove(at).1,
            None => default,
        }
    }

    fn expect_none_left(&self, text: &str, spec: &ChunkerSpec) -> Result<()> {
        let Some((key, _)) = self.0.first() else { return Ok(()) };
        let known: Vec<&str> = spec.parameters().into_iter().map(|(key, _)| key).collect();
        Err(malformed(text, format_args!("'{key}' is not one of {}", known.join(", "))))
    }
}

/// Parses plain decimal digits: one number has one text.
fn number(text: &str) -> Option<u32> {
    let is_plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

fn malformed(text: &str, why: fmt::Arguments<'_>) -> Error {
    Error::new(Kind::Usage, format!("cannot read chunker '{}': {why}", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_spec_is_written_with_all_its_parameters_in_one_order() {
        for (text, canonical) in [
            ("gear", "gear:min=16384,avg=65536,max=262144"),
            ("rabin", "rabin:window=32,avg=65536,min=32768,max=131072"),
            ("fixed", "fixed:size=4194304"),
            ("gear:max=9000,avg=4096,min=64", "gear:min=64,avg=4096,max=9000"),
            ("gear:avg=1048576", "gear:min=262144,avg=1048576,max=4194304"),
            ("gear:avg=64", "gear:min=64,avg=64,max=256"),
            ("gear:avg=16777216", "gear:min=4194304,avg=16777216,max=16777216"),
            ("rabin:avg=8192", "rabin:window=32,avg=8192,min=4096,max=16384"),
            ("rabin:max=9000,min=300,avg=1000,window=64", "rabin:window=64,avg=1000,min=300,max=9000"),
            ("fixed:size=64", "fixed:size=64"),
        ] {
            assert_eq!(text.parse::<ChunkerSpec>().unwrap().to_string(), canonical);
            assert_eq!(canonical.parse::<ChunkerSpec>().unwrap().to_string(), canonical);
        }
        assert_eq!(ChunkerSpec::default(), "gear".parse().unwrap());
    }

    #[test]
    fn a_wrong_spec_is_refused_with_what_is_allowed() {
        for (text, message) in [
            ("", "cannot read chunker '': '' is not one of gear, rabin, fixed"),
            ("Gear", "cannot read chunker 'Gear': 'Gear' is not one of gear, rabin, fixed"),
            ("gear:", "cannot read chunker 'gear:': '' is not key=value"),
            ("gear:avg", "cannot read chunker 'gear:avg': 'avg' is not key=value"),
            ("gear:avg=+5", "cannot read chunker 'gear:avg=+5': '+5' is not a number of bytes"),
            ("gear:avg=064", "cannot read chunker 'gear:avg=064': '064' is not a number of bytes"),
            ("gear:avg=64K", "cannot read chunker 'gear:avg=64K': '64K' is not a number of bytes"),
            ("gear:avg=4294967296", "cannot read chunker 'gear:avg=4294967296': '4294967296' is not a number of bytes"),
            ("gear:avg=64,avg=64", "cannot read chunker 'gear:avg=64,avg=64': 'avg' stands twice"),
            ("gear:window=32", "cannot read chunker 'gear:window=32': 'window' is not one of min, avg, max"),
            ("fixed:avg=1", "cannot read chunker 'fixed:avg=1': 'avg' is not one of size"),
            ("gear\n", "cannot read chunker 'gear\\n': 'gear\n' is not one of gear, rabin, fixed"),
            ("fixed:size=0", "chunker 'fixed:size=0' is out of bounds; it must have 64 <= size <= 16777216"),
            (
                "gear:min=63,avg=64,max=64",
                "chunker 'gear:min=63,avg=64,max=64' is out of bounds; it must have 64 <= min <= avg <= max <= 16777216",
            ),
            (
                "gear:min=64,avg=65,max=70",
                "chunker 'gear:min=64,avg=65,max=70' is out of bounds; it must have avg a power of two",
            ),
            (
                "gear:max=16777217",
                "chunker 'gear:min=16384,avg=65536,max=16777217' is out of bounds; it must have 64 <= min <= avg <= max <= 16777216",
            ),
            (
                "rabin:window=257",
                "chunker 'rabin:window=257,avg=65536,min=32768,max=131072' is out of bounds; it must have 16 <= window <= 256",
            ),
            (
                "rabin:min=0",
                "chunker 'rabin:window=32,avg=65536,min=0,max=131072' is out of bounds; it must have 1 <= min <= avg <= max <= 16777216 and 64 <= avg",
            ),
        ] {
            let error = text.parse::<ChunkerSpec>().unwrap_err();
            assert_eq!((error.to_string().as_str(), error.kind()), (message, Kind::Usage), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]
        #[test]
        fn any_text_is_refused_or_survives_a_round_trip(text in "(gear|rabin|fixed)?[:,=a-z0-9]{0,40}") {
            if let Ok(spec) = text.parse::<ChunkerSpec>() {
                prop_assert_eq!(spec.to_string().parse::<ChunkerSpec>().unwrap(), spec);
                prop_assert!(spec.max_len() <= LONGEST as usize);
            }
        }
    }
}
