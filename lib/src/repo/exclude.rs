//! What is left out: patterns of the command line, of `info/exclude`, and marks in directories.
//!
//! Patterns are those of `gitignore(5)`, matched from the root of the work tree. What the command line leaves out is left out even if it was
//! stored before; what `info/exclude` leaves out is only never *started* to be stored, as in git.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use gix_glob::pattern::Case;
use gix_ignore::Search;
use gix_ignore::search::Ignore;

use crate::durable;
use crate::error::{Context, Error, Kind, Result};

/// What a run leaves out, as the caller asked for it.
#[derive(Clone, Debug, Default)]
pub struct ExcludeOptions {
    /// Patterns, in the syntax of `gitignore(5)`.
    pub patterns: Vec<Vec<u8>>,
    /// Leave out the content of directories that are marked as caches by a `CACHEDIR.TAG`.
    pub caches: bool,
    /// Leave out the content of directories that hold a file of one of these names.
    pub if_present: Vec<Vec<u8>>,
    /// Leave out files of more bytes than this.
    pub larger_than: Option<u64>,
}

/// Compiled patterns; cheap to ask.
pub struct Excludes {
    explicit: Search,
    standing: Search,
    options: ExcludeOptions,
}

impl Excludes {
    /// Compiles the `options` of a run and the patterns in the file `info_exclude`, which may be missing.
    pub fn new(options: ExcludeOptions, info_exclude: &Path) -> Result<Self> {
        let patterns = options.patterns.iter().map(|pattern| OsString::from_vec(pattern.clone()));
        let explicit = Search::from_overrides(patterns, Ignore::default());
        let mut standing = Search::default();
        let what = || format!("cannot read '{}'", info_exclude.display());
        if let Some(text) = durable::read_if_there(info_exclude).context(what)? {
            standing.add_patterns_buffer(&text, info_exclude, None, Ignore::default()).context(what)?;
        }
        if let Some(name) = options.if_present.iter().find(|name| name.is_empty() || name.contains(&b'/')) {
            let name = name.escape_ascii();
            return Err(Error::new(Kind::Usage, format!("'{name}' cannot mark a directory: give a file name without a slash")));
        }
        Ok(Self { explicit, standing, options })
    }

    /// Says whether the command line leaves out the entry at `path`.
    pub fn is_explicit(&self, path: &[u8], is_dir: bool, size: u64) -> bool {
        !is_dir && self.options.larger_than.is_some_and(|limit| size > limit) || matches(&self.explicit, path, is_dir)
    }

    /// Says whether `info/exclude` leaves out the entry at `path`, as long as it is not stored already.
    pub fn is_standing(&self, path: &[u8], is_dir: bool) -> bool {
        matches(&self.standing, path, is_dir)
    }

    /// Returns the names whose presence in a directory leaves out the rest of its content.
    pub fn marks(&self) -> impl Iterator<Item = &[u8]> {
        let tag = self.options.caches.then_some(CACHE_TAG);
        self.options.if_present.iter().map(Vec::as_slice).chain(tag)
    }

    /// Says whether a file called `mark` with this content marks a directory to be left out.
    pub fn is_mark(mark: &[u8], content: &[u8]) -> bool {
        mark != CACHE_TAG || content.starts_with(CACHE_SIGNATURE)
    }
}

/// The file that marks a cache directory (bford.info/cachedir).
const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
const CACHE_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";

fn matches(search: &Search, path: &[u8], is_dir: bool) -> bool {
    search
        .pattern_matching_relative_path(path.into(), Some(is_dir), Case::Sensitive)
        .is_some_and(|found| !found.pattern.is_negative())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_gitignore() {
        let patterns = ["*.o", "/build/", "cache/**", "!keep.o"].map(|p| p.as_bytes().to_vec()).to_vec();
        let options = ExcludeOptions { patterns, larger_than: Some(10), ..Default::default() };
        let excludes = Excludes::new(options, Path::new("/nonexistent")).unwrap();
        for (path, is_dir, size, want) in [
            ("a/b.o", false, 0, true),
            ("keep.o", false, 0, false),
            ("build", true, 0, true),
            ("build", false, 0, false),
            ("x/build", true, 0, false),
            ("cache/x", false, 0, true),
            ("fat", false, 11, true),
            ("fat", false, 10, false),
        ] {
            assert_eq!(excludes.is_explicit(path.as_bytes(), is_dir, size), want, "{path}");
        }
    }
}
