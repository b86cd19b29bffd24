//! Options of the verbs that may hand over what they store, or read it from standard input.

use std::path::{Path, PathBuf};
use std::time::Duration;

use git_devops::error::Result;
use git_devops::progress::Progress;
use git_devops::repo::hand_over::HandOverOptions;
use git_devops::repo::scan::ScanOptions;
use git_devops::repo::stage::{self, CommitInfo, Recorded};
use git_devops::repo::{Repo, remotes, streamed};

use super::fetch::{connect, fetch_all, scratch};
use super::scan_args::parse_size;
use crate::places::{GlobalArgs, moment};
use crate::ui::Ui;

/// Where content comes from, and where it goes.
#[derive(clap::Args)]
pub struct HandOverArgs {
    /// Store what comes on standard input as the content of PATH, which need not be on the disk
    #[arg(long, value_name = "PATH", conflicts_with_all = ["paths", "dry_run"])]
    stdin: Option<PathBuf>,
    /// Keep no content of large files here: other holders take it while it is read, and this waits for them
    ///
    /// For what is larger than this host's disk. They run 'gdo sync --follow', with this host as a remote, and are remotes here. Done when as many as
    /// 'devops.copies' says hold everything.
    #[arg(long)]
    hand_over: bool,
    /// So much may be here at a time (K, M, G, T for powers of 1024); without it, half of what is free, 4G at most
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "hand_over")]
    in_flight: Option<u64>,
    /// Give up when others did not take anything for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "hand_over")]
    wait: u64,
}

impl HandOverArgs {
    /// Says whether a stream is stored, and no paths.
    pub fn is_stream(&self) -> bool {
        self.stdin.is_some()
    }

    fn how(&self) -> Option<HandOverOptions> {
        let (in_flight, wait) = (self.in_flight, Duration::from_secs(self.wait));
        self.hand_over.then(|| HandOverOptions { in_flight, wait, clock: moment, scratch: scratch() })
    }

    /// Stores the stream.
    pub fn record_stream(
        &self,
        ui: &mut Ui,
        global: &GlobalArgs,
        repo: &Repo,
        commit: Option<&CommitInfo>,
        progress: &Progress,
    ) -> Result<Recorded> {
        let path = self.stdin.as_deref().unwrap_or(Path::new(""));
        let paths = global.work_paths(&repo.places, &[path.to_owned()])?;
        let recorded = streamed::record_stream(repo, &paths[0], &mut std::io::stdin(), commit, self.how().as_ref(), progress)?;
        self.learn(ui, repo);
        Ok(recorded)
    }

    /// Stores what `options` take in.
    pub fn record(
        &self,
        ui: &mut Ui,
        repo: &Repo,
        options: &ScanOptions,
        commit: Option<&CommitInfo>,
        progress: &Progress,
    ) -> Result<Recorded> {
        let Some(how) = self.how() else { return stage::record(repo, options, commit, progress) };
        let recorded = stage::record_handing_over(repo, options, commit, &how, progress)?;
        self.learn(ui, repo);
        Ok(recorded)
    }

    /// Learns what others tell that they hold, so that 'whereis' and 'check' know. It is done, whether they tell or not.
    fn learn(&self, ui: &mut Ui, repo: &Repo) {
        if let (true, Ok(remotes)) = (self.hand_over, remotes::list(repo)) {
            let hosts = connect(ui, repo, &remotes);
            fetch_all(ui, repo, &hosts);
        }
    }
}
