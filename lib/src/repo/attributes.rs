//! What is laid down for paths by pattern: which chunker cuts which files.
//!
//! Format: `docs/formats/attributes.md`. Stored in commits at `.git-devops/attributes`.

use gix_glob::pattern::Case;
use gix_glob::{Pattern, wildmatch};

use super::Repo;
use super::scan::Staged;
use super::stage::merged;
use crate::chunk::ChunkerSpec;
use crate::error::{Context, Error, Kind, Result};
use crate::git::index::{CachedStat, Index};
use crate::git::object::FILE;
use crate::git::{Kept, PackWriter};

/// Where the attributes stand in a commit.
pub const PATH: &[u8] = b".git-devops/attributes";

/// The lines of an attributes file; of several that match a path and say the same thing, the last one counts.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
struct Line {
    pattern: Pattern,
    chunker: Option<ChunkerSpec>,
}

impl Attributes {
    /// Reads an attributes file; an unknown key or a wrong value is refused with its line number.
    pub fn decode(text: &[u8]) -> Result<Self> {
        let mut lines = Vec::new();
        for (at, line) in text.split(|&b| b == b'\n').enumerate() {
            let what = || format!("attributes have a bad line {}", at + 1);
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            lines.push(Line::decode(line).context(what)?);
        }
        Ok(Self { lines })
    }

    /// Returns the chunker for the file at `path`, relative to the work tree; `default` where no line says.
    pub fn chunker(&self, path: &[u8], default: &ChunkerSpec) -> ChunkerSpec {
        let said = self.lines.iter().rev().filter(|line| line.matches(path)).find_map(|line| line.chunker);
        said.unwrap_or(*default)
    }
}

impl Line {
    fn decode(line: &[u8]) -> Result<Self> {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let pattern = words.next().and_then(Pattern::from_bytes);
        let pattern = pattern.filter(|pattern| !pattern.is_negative());
        let mut line = Self { pattern: pattern.ok_or_else(|| Error::new(Kind::Usage, "it has no pattern"))?, chunker: None };
        for word in words {
            let word = String::from_utf8_lossy(word);
            match word.split_once('=') {
                Some(("chunker", spec)) => line.chunker = Some(spec.parse()?),
                _ => return Err(Error::new(Kind::Usage, format!("unknown attribute '{word}'; known is 'chunker=SPEC'"))),
            }
        }
        Ok(line)
    }

    fn matches(&self, path: &[u8]) -> bool {
        let basename = path.iter().rposition(|&b| b == b'/').map(|at| at + 1);
        let mode = wildmatch::Mode::NO_MATCH_SLASH_LITERAL;
        self.pattern.matches_repo_relative_path(path.into(), basename, Some(false), Case::Sensitive, mode)
    }
}

/// Returns the text of the attributes that are staged.
pub fn text(repo: &Repo, index: &Index) -> Result<Vec<u8>> {
    index.lookup(PATH).map_or(Ok(Vec::new()), |position| repo.objects.blob(&index.entry(position).oid))
}

/// Lays down `values` for `pattern` in the place of what was laid down for it before, staged for the next commit; returns the new text.
pub fn set(repo: &Repo, pattern: &str, values: &[String]) -> Result<Vec<u8>> {
    if pattern.is_empty() || pattern.chars().chain(values.iter().flat_map(|value| value.chars())).any(char::is_whitespace) {
        return Err(Error::new(
            Kind::Usage,
            format!("'{pattern}' and its values must be words without spaces; write '?' for a space"),
        ));
    }
    let _lock = repo.lock()?;
    let index = repo.index()?;
    let old = text(repo, &index)?;
    let old = String::from_utf8_lossy(&old);
    let mut lines: Vec<String> =
        old.lines().filter(|line| line.split_ascii_whitespace().next() != Some(pattern)).map(str::to_owned).collect();
    if !values.is_empty() {
        lines.push(format!("{pattern} {}", values.join(" ")));
    }
    let new = lines.iter().flat_map(|line| [line.as_bytes(), b"\n"]).collect::<Vec<_>>().concat();
    Attributes::decode(&new)?;
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let entry = Staged { path: PATH.to_vec(), oid: pack.blob(&new)?, mode: FILE, stat: CachedStat::default() };
    let index = merged(&index, vec![entry], &[])?;
    let kept = pack.finish()?;
    repo.write_index(&index)?;
    crate::durable::sync_filesystem(&repo.places.git_dir)?;
    kept.map_or(Ok(()), Kept::release)?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_matches_counts() {
        let text = b"# disks\n*.img chunker=fixed:size=4194304\n\n/old/** chunker=rabin\nold/special.img chunker=gear\n";
        let attributes = Attributes::decode(text).unwrap();
        for (path, want) in [
            ("a.txt", "gear:min=16384,avg=65536,max=262144"),
            ("vm/a.img", "fixed:size=4194304"),
            ("old/a.img", "rabin:window=32,avg=65536,min=32768,max=131072"),
            ("old/special.img", "gear:min=16384,avg=65536,max=262144"),
        ] {
            assert_eq!(attributes.chunker(path.as_bytes(), &ChunkerSpec::default()).to_string(), want, "{path}");
        }
    }

    #[test]
    fn a_line_that_is_not_understood_is_refused_with_its_number() {
        for text in ["*.img chunker=zip", "*.img colour=blue", "*.img chunker", "!x chunker=gear"] {
            let error = Attributes::decode(format!("\n{text}\n").as_bytes()).unwrap_err();
            assert!(error.to_string().contains("bad line 2"), "{text}: {error}");
        }
    }
}
