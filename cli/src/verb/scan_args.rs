//! Options of the verbs that look at the work tree.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use git_devops::error::{Context, Result};
use git_devops::repo::Repo;
use git_devops::repo::exclude::{ExcludeOptions, Excludes};
use git_devops::repo::scan::{ScanOptions, Scope};

use crate::ui::usage;

/// What to leave out.
#[derive(clap::Args)]
pub struct ScanArgs {
    /// Leave out what matches PATTERN, as in gitignore(5); may be given several times
    #[arg(short, long = "exclude", value_name = "PATTERN")]
    excludes: Vec<OsString>,
    /// Leave out what matches a pattern in FILE, one a line
    #[arg(long = "exclude-file", value_name = "FILE")]
    exclude_files: Vec<PathBuf>,
    /// Leave out the content of directories that CACHEDIR.TAG marks as caches
    #[arg(long)]
    exclude_caches: bool,
    /// Leave out the content of directories that hold a file called NAME
    #[arg(long, value_name = "NAME")]
    exclude_if_present: Vec<OsString>,
    /// Leave out files larger than SIZE bytes (K, M, G, T for powers of 1024)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    exclude_larger_than: Option<u64>,
    /// Do not enter other filesystems
    #[arg(short = 'x', long)]
    one_file_system: bool,
}

impl ScanArgs {
    /// Returns how to look at `scope`.
    pub fn options(&self, repo: &Repo, scope: Scope) -> Result<ScanOptions> {
        let mut patterns: Vec<Vec<u8>> = self.excludes.iter().map(|pattern| pattern.as_bytes().to_vec()).collect();
        for path in &self.exclude_files {
            patterns.extend(read_patterns(path)?);
        }
        let options = ExcludeOptions {
            patterns,
            caches: self.exclude_caches,
            if_present: self.exclude_if_present.iter().map(|name| name.clone().into_vec()).collect(),
            larger_than: self.exclude_larger_than,
        };
        let excludes = Excludes::new(options, &repo.places.git_dir.join("info/exclude"))?;
        Ok(ScanOptions { scope, excludes, one_file_system: self.one_file_system, by_reference: false })
    }
}

fn read_patterns(path: &Path) -> Result<Vec<Vec<u8>>> {
    let text = std::fs::read(path).context(|| format!("cannot read exclude file '{}'", path.display()))?;
    let lines = text.split(|&b| b == b'\n').filter(|line| !line.is_empty() && line[0] != b'#');
    Ok(lines.map(<[u8]>::to_vec).collect())
}

/// Parses a number of bytes with an optional unit.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("unknown unit '{unit}'; use K, M, G or T")),
    };
    let number: u64 = number.parse().map_err(|_| "not a number of bytes".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// Returns the scope that `paths` name; all that is owned if there are none.
pub fn scope(paths: Vec<Vec<u8>>) -> Scope {
    if paths.is_empty() { Scope::Owned } else { Scope::Paths(paths) }
}

/// Refuses a path that is neither on the disk nor stored.
pub fn check_paths(repo: &Repo, paths: &[Vec<u8>]) -> Result<()> {
    let index = repo.index()?;
    for path in paths {
        let on_disk = repo.places.work_tree.join(crate::places::as_path(path)).symlink_metadata().is_ok();
        if !on_disk && !repo.is_stored(&index, path) {
            return Err(usage(format!("path '{}' is neither there nor stored", path.escape_ascii())));
        }
    }
    Ok(())
}
