//! Files that lie on the disk in another form than they are stored in: rendered from a template, or decrypted.

use super::Repo;
use super::attributes::Ownership;
use super::scan::{Sink, shown};
use crate::error::{Context, Error, Kind, Result};
use crate::git::Oid;

/// What such a file should hold.
pub(super) struct Laid {
    ownership: Ownership,
    /// The template or the encrypted message, and what the file should hold; `None` if nothing is stored yet.
    stored: Option<(Oid, Vec<u8>)>,
    path: Vec<u8>,
}

/// No template and no encrypted message is longer, in bytes: see `MAX_THRESHOLD`.
const MAX_STORED: u64 = super::MAX_THRESHOLD;

/// What is shown in the place of a secret.
const MASK: &[u8] = b"(a secret that is not as it was stored; its content is not shown)\n";

/// Fails, without reading it, if the blob `oid` is longer than any template or encrypted message is.
pub(super) fn must_be_short(repo: &Repo, oid: &Oid) -> Result<()> {
    match repo.objects.blob_size(oid)? {
        Some(size) if size > MAX_STORED => Err(Error::new(
            Kind::Refused,
            format!("blob '{oid}' has {size} bytes; at most {MAX_STORED} are read of a template or a secret"),
        )),
        _ => Ok(()),
    }
}

impl Laid {
    /// Returns what the file at `path`, stored as the blob `stored`, should hold; `None` if just what is stored.
    pub fn of(repo: &Repo, path: &[u8], ownership: Ownership, stored: Option<Oid>) -> Result<Option<Self>> {
        let is_meant = match ownership {
            Ownership::Env => stored.is_some(), // the first version is the template
            Ownership::Secret => true,
            Ownership::Own | Ownership::Seed | Ownership::Local => false,
        };
        if !is_meant {
            return Ok(None);
        }
        let want = |oid: Oid| -> Result<(Oid, Vec<u8>)> {
            must_be_short(repo, &oid)?;
            let blob = repo.objects.blob(&oid)?;
            Ok((oid, repo.laying.content(path, ownership, &blob)?.unwrap_or(blob)))
        };
        let stored = stored.map(want).transpose().context(|| "cannot tell what it should hold")?;
        Ok(Some(Self { ownership, stored, path: path.to_vec() }))
    }

    /// Returns the blob that stands for `content`, read from the disk: what is stored, if that is right. No secret is ever put into a blob.
    pub fn oid_of(&self, content: Option<&[u8]>, sink: Sink<'_>) -> Result<Oid> {
        match &self.stored {
            Some((oid, want)) if content == Some(want) => Ok(*oid),
            _ if matches!(sink, Sink::Store { .. }) => Err(self.refusal()),
            _ if self.ownership == Ownership::Secret => sink.blob(MASK),
            _ => sink.blob(content.unwrap_or_default()),
        }
    }

    fn refusal(&self) -> Error {
        let path = shown(&self.path);
        let message = match self.ownership {
            Ownership::Secret => format!(
                "is a secret and is not stored as it lies here; encrypt it with 'gdo secret add {path} --to KEYFILE', or put back what is stored with \
                 'gdo restore {path}'"
            ),
            _ => format!(
                "is rendered from a template, which cannot be had back from it; change the template with 'gdo env template {path} FILE' or what it is \
                 filled with, or put back what is rendered with 'gdo restore {path}'"
            ),
        };
        Error::new(Kind::Refused, message)
    }
}
