//! `gdo chunk`

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use git_devops::chunk::{ChunkerSpec, Chunks};
use git_devops::error::{Context, Result};
use git_devops::id::ChunkId;
use serde_json::json;

use crate::ui::Ui;

/// Cut a file into chunks and print offset, length and id of each
#[derive(clap::Args)]
pub struct ChunkArgs {
    /// How to cut: gear:min=N,avg=N,max=N, rabin:window=N,avg=N,min=N,max=N or fixed:size=N
    #[arg(long, value_name = "SPEC", default_value_t)]
    chunker: ChunkerSpec,
    /// The file, '-' for standard input
    file: PathBuf,
}

pub fn run(ui: &mut Ui, args: &ChunkArgs) -> Result<()> {
    let input: Box<dyn Read> = if args.file.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(File::open(&args.file).context(|| format!("cannot open '{}'", args.file.display()))?)
    };
    let mut chunks = Chunks::new(input, &args.chunker);
    let mut offset = 0;
    while let Some(chunk) = chunks.next().context(|| format!("cannot read '{}'", args.file.display()))? {
        let (len, id) = (chunk.len() as u64, ChunkId::of(chunk));
        ui.json(|| json!({"offset": offset, "length": len, "id": id.to_string()}))?;
        ui.line(format_args!("{offset} {len} {id}"))?;
        offset += len;
    }
    Ok(())
}
