//! How changes and results of a scan are shown.

use git_devops::error::Result;
use git_devops::repo::changes::Changes;
use git_devops::repo::scan::{Change, Found, What};
use git_devops::repo::stage::Recorded;
use serde_json::{Value, json};

use crate::exit;
use crate::ui::{Ui, bytes, json_path, shown_path};

/// Returns the letter that stands for a kind of change.
pub fn letter(what: What) -> char {
    match what {
        What::Added => 'A',
        What::Content => 'M',
        What::Metadata => 'm',
        What::Deleted => 'D',
    }
}

/// Returns changes as JSON.
pub fn to_json(changes: &[Change]) -> Value {
    all_to_json(changes.iter().map(Change::parts))
}

/// Returns what a scan found as JSON.
pub fn found_to_json(changes: &Changes) -> Value {
    all_to_json(changes.iter())
}

fn all_to_json<'a>(changes: impl Iterator<Item = (&'a [u8], What)>) -> Value {
    let name = |what| match what {
        What::Added => "added",
        What::Content => "content",
        What::Metadata => "metadata",
        What::Deleted => "deleted",
    };
    changes.map(|(path, what)| json!({"path": json_path(path), "change": name(what)})).collect()
}

/// Says what was recorded, and what was left out.
pub fn report(ui: &mut Ui, recorded: &Recorded, verb: &str) -> Result<()> {
    let warnings = ui.warnings();
    let found = &recorded.found;
    let chunks = &recorded.chunks;
    ui.json(|| {
        json!({
            "commit": recorded.commit.map(|commit| commit.to_string()),
            "files_seen": found.n_seen,
            "changes": found_to_json(&found.changes),
            "chunks_new": chunks.new_chunks,
            "chunks_known": chunks.known_chunks,
            "bytes_chunked": chunks.plain_bytes,
            "bytes_stored": chunks.stored_bytes,
            "partial": found.is_partial,
            "warnings": warnings,
        })
    })?;
    let count = |what| found.changes.iter().filter(|(_, found)| *found == what).count();
    let (added, changed, touched, gone) = (count(What::Added), count(What::Content), count(What::Metadata), count(What::Deleted));
    ui.note(format_args!(
        "{verb} {added} new, {changed} changed, {touched} with new metadata, {gone} gone, of {} looked at",
        found.n_seen
    ))?;
    if chunks.new_chunks + chunks.known_chunks > 0 {
        let (new, known, stored) = (chunks.new_chunks, chunks.known_chunks, bytes(chunks.stored_bytes));
        ui.note(format_args!("large files: {new} new chunks ({stored} stored), {known} known already"))?;
    }
    if let Some(commit) = recorded.commit {
        ui.note(format_args!("commit {commit}"))?;
    }
    if found.is_partial {
        ui.exit_with(exit::PARTIAL);
    }
    Ok(())
}

/// Says what a dry run found.
pub fn preview(ui: &mut Ui, found: &Found) -> Result<()> {
    let warnings = ui.warnings();
    ui.json(|| json!({"changes": found_to_json(&found.changes), "warnings": warnings}))?;
    for (path, what) in found.changes.iter() {
        ui.line(format_args!("{} {}", letter(what), shown_path(path)))?;
    }
    if found.is_partial {
        ui.exit_with(exit::PARTIAL);
    }
    Ok(())
}
