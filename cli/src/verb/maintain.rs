//! `gdo maintain`

use std::time::{Duration, Instant};

use git_devops::error::Result;
use git_devops::repo::maintain::maintain;
use git_devops::store::{CutShort, Recompress};
use serde_json::json;

use crate::places::GlobalArgs;
use crate::ui::{Ui, bytes, counted};

/// Make the repository smaller: routine upkeep for an idle hour
///
/// Git's objects go into one pack with the deltas found anew, if a quarter of them or more came since the last time. Chunks are compressed once more, at a
/// level that takes too long while somebody waits. Nothing is removed but what something smaller is there for; 'gdo gc' removes what nothing refers to.
/// What is done is not done again, and a run that is cut off goes on the next time.
#[derive(clap::Args)]
pub struct MaintainArgs {
    /// Compress chunks at zstd level N, 1 to 19
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
    /// Begin nothing more after N minutes; the next run goes on
    #[arg(long, value_name = "N")]
    minutes: Option<u32>,
    /// Tell what there is to do, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &MaintainArgs) -> Result<()> {
    let repo = global.repo()?;
    let progress = ui.progress();
    let until = args.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * u64::from(minutes)));
    let done = maintain(&repo, &Recompress { level: args.level, dry_run: args.dry_run, until }, &progress)?;
    ui.warnings();
    let chunks = &done.chunks;
    let why = chunks.cut_short.map(|why| match why {
        CutShort::Time => "time",
        CutShort::NoSpace => "no-space",
        CutShort::Busy => "busy",
    });
    ui.json(|| {
        json!({
            "dry_run": args.dry_run, "repacked": done.is_repacked, "git_bytes_before": done.git_before, "git_bytes_after": done.git_after,
            "packs": chunks.packs, "chunk_bytes_before": chunks.bytes_before, "chunk_bytes_after": chunks.bytes_after,
            "left_packs": chunks.left_packs, "left_bytes": chunks.left_bytes, "cut_short": why,
            "damaged_packs": chunks.findings.iter().map(|found| found.file.display().to_string()).collect::<Vec<_>>(),
        })
    })?;
    match (args.dry_run, done.is_repacked) {
        (true, true) => ui.note(format_args!("would pack git's objects anew: {}", bytes(done.git_before)))?,
        (false, true) => ui.note(format_args!("git's objects: {}, were {}", bytes(done.git_after), bytes(done.git_before)))?,
        (_, false) => ui.note(format_args!("git's objects are left as they are: {}", bytes(done.git_before)))?,
    }
    if args.dry_run {
        let packs = counted(chunks.left_packs as usize, "chunk pack");
        return ui.note(format_args!("would compress {packs} once more: {}", bytes(chunks.left_bytes)));
    }
    let packs = counted(chunks.packs as usize, "chunk pack");
    ui.note(format_args!("{packs} compressed once more: {}, were {}", bytes(chunks.bytes_after), bytes(chunks.bytes_before)))?;
    for found in &chunks.findings {
        ui.line(format_args!("'{}' is damaged and stays: {}; {}", found.file.display(), found.problem, found.remedy))?;
    }
    let left = bytes(chunks.left_bytes);
    match chunks.cut_short {
        None => Ok(()),
        Some(CutShort::Time) => ui.note(format_args!("the time is over: {left} are left for the next run")),
        Some(CutShort::NoSpace) => {
            ui.exit_with(crate::exit::PARTIAL);
            ui.line(format_args!("the disk is too full for copies: {left} are left; make some room (some 100 MiB), then run it again"))
        }
        Some(CutShort::Busy) => {
            ui.line("somebody stores chunks: what was compressed once more is there twice until the next run, which removes the old copies")
        }
    }
}
