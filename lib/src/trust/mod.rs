//! What moves this host, and whom it believes: releases, root documents, the floor.
//!
//! The rules are in [`decide`], without I/O; [`release`], [`root`] and [`floor`] are bytes; [`gpg`] starts gpgv and gpg; [`local`] is what lies on this
//! host. Formats: `docs/formats/release.md`, `docs/formats/trust.md`.

pub mod decide;
pub mod floor;
pub mod gpg;
pub mod local;
pub mod manifest;
pub mod openpgp;
pub mod release;
pub mod root;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind, Reason, Result};
use crate::git::refs::check_ref_name;

pub use floor::Accepted;
pub use local::LocalTrust;
pub use manifest::Manifest;
pub use openpgp::Fingerprint;
pub use release::Release;
pub use root::Root;

/// The name of a machine type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeName(String);

/// Longest name of a type, in bytes.
const MAX_TYPE: usize = 200;

impl TypeName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TypeName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
        match name.len() <= MAX_TYPE && name.bytes().all(is_plain) && check_ref_name(&format!("refs/heads/{name}")).is_ok() {
            true => Ok(Self(name.to_owned())),
            false => Err(Error::new(
                Kind::Usage,
                format!("'{}' is no name of a type; letters, digits, '-', '_', '.' and '/' make one", name.escape_debug()),
            )),
        }
    }
}

impl fmt::Display for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a release is called: its type, its epoch and its number. Printed as the name of its tag: `release/web/7`, or `release/web/2.7` in epoch 2.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReleaseName {
    /// Of which type.
    pub kind: TypeName,
    /// How often the numbers of its type began anew; from 1.
    pub epoch: u32,
    /// Its number within the epoch.
    pub seq: u64,
}

impl ReleaseName {
    /// Returns the ref that its tag is.
    pub fn to_ref(&self) -> String {
        format!("refs/tags/{self}")
    }
}

impl FromStr for ReleaseName {
    type Err = Error;

    /// Reads the name of a tag, with or without `refs/tags/`.
    fn from_str(name: &str) -> Result<Self> {
        let short = name.strip_prefix("refs/tags/").unwrap_or(name);
        let read = || {
            let (kind, numbers) = short.strip_prefix("release/")?.rsplit_once('/')?;
            let (epoch, seq) = match numbers.split_once('.') {
                Some((epoch, seq)) => (number(epoch).filter(|&epoch| epoch > 1)?, seq),
                None => (1, numbers),
            };
            Some(Self { kind: kind.parse().ok()?, epoch, seq: number(seq)? })
        };
        read().ok_or_else(|| {
            let message = format!("'{}' is no name of a release; 'release/TYPE/NUMBER' is one", name.escape_debug());
            Error::refused(Reason::WrongBranch, message)
        })
    }
}

impl fmt::Display for ReleaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.epoch {
            1 => write!(f, "release/{}/{}", self.kind, self.seq),
            epoch => write!(f, "release/{}/{epoch}.{}", self.kind, self.seq),
        }
    }
}

/// Reads a number that is written as we write it: digits without a leading zero.
fn number<N: FromStr + fmt::Display>(text: &str) -> Option<N> {
    text.parse().ok().filter(|number: &N| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_one_name() {
        for name in ["release/web/7", "release/web/canary/1", "release/web/2.1", "release/a.b-c_d/18446744073709551615"] {
            assert_eq!(name.parse::<ReleaseName>().unwrap().to_string(), name);
            assert_eq!(format!("refs/tags/{name}").parse::<ReleaseName>().unwrap().to_ref(), format!("refs/tags/{name}"));
        }
        let wrong =
            ["", "release/7", "release//7", "release/web/07", "release/web/+7", "release/web/", "release/web/7/", "release/../7"];
        for name in wrong.into_iter().chain([
            "release/a b/7",
            "v1",
            "release/web/1.7",
            "release/web/2.",
            "release/web/2.1.1",
            "release/web/18446744073709551616",
            "release/x.lock/1",
        ]) {
            assert_eq!(name.parse::<ReleaseName>().unwrap_err().reason(), Some(Reason::WrongBranch), "{name}");
        }
    }
}
