//! Reads the two files of a PEFT folder, or of a folder with a whole model, below the configured adapter folder.
//!
//! Hostile until read: the name is one path component, nothing is a link, files are regular and have no second name
//! elsewhere, sizes are bounded before a byte is read. What the files say is the model's to judge. Error texts name
//! folder and file as the caller did, never where the adapter folder lies. Sizes in bytes.

use std::io::Read;
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::OFlags;

use super::kind::{FULL, PEFT};
use super::{AdapterFiles, RegistryError};

/// Formats that run code when they are read.
const PICKLES: [&str; 3] = ["bin", "pt", "pkl"];

/// Reads folder `name` below `root`; both files together have at most `limit` bytes.
///
/// # Errors
/// [`RegistryError::Directory`] says what cannot be taken.
pub(super) fn read(root: &Path, name: &str, limit: u64) -> Result<AdapterFiles, RegistryError> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
        && !matches!(name, "." | "..");
    if !plain {
        return refuse("a folder is one name of letters, digits, `.`, `_` and `-`".into());
    }
    let Ok(root) = Dir::open_ambient_dir(root, ambient_authority()) else {
        return refuse("the adapter folder cannot be opened".into());
    };
    // Not followed and not waited for: neither a link nor a pipe in place of the folder.
    let mut folder = OpenOptions::new();
    folder.read(true).custom_flags(flags(OFlags::DIRECTORY));
    let folder = match root.open_with(name, &folder) {
        Ok(folder) => Dir::from_std_file(folder.into_std()),
        Err(error) => return refuse(format!("folder `{name}`: {}", reason(&error))),
    };
    // peft may leave the base's config.json beside its own.
    let there = |file: &str| folder.symlink_metadata(file).is_ok();
    let [config, tensors] = if !there(PEFT[0]) && there(FULL[0]) { FULL } else { PEFT };
    let config = read_file(&folder, name, config, limit)?;
    let tensors = read_file(&folder, name, tensors, limit - config.len() as u64)?;
    Ok(AdapterFiles { config, tensors })
}

fn read_file(folder: &Dir, name: &str, file: &str, limit: u64) -> Result<Vec<u8>, RegistryError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags(OFlags::empty()));
    let opened = match folder.open_with(file, &options) {
        Ok(opened) => opened,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && has_pickle(folder) => {
            return refuse(format!("folder `{name}` has no {file}; only safetensors files are taken"));
        }
        Err(error) => return refuse(format!("{name}/{file}: {}", reason(&error))),
    };
    let fault = |error: std::io::Error| RegistryError::Directory(format!("{name}/{file}: {}", reason(&error)));
    let metadata = opened.metadata().map_err(fault)?;
    if !metadata.is_file() {
        return refuse(format!("{name}/{file} is not a regular file"));
    }
    if metadata.nlink() > 1 {
        return refuse(format!("{name}/{file} has a second name (hard link)"));
    }
    if metadata.len() > limit {
        return refuse(format!("{name}/{file} has {} bytes; {limit} are left of the limit", metadata.len()));
    }
    let mut content = Vec::new();
    opened.take(limit + 1).read_to_end(&mut content).map_err(fault)?;
    if content.len() as u64 != metadata.len() {
        return refuse(format!("{name}/{file} changed while it was read"));
    }
    Ok(content)
}

fn has_pickle(folder: &Dir) -> bool {
    let Ok(entries) = folder.entries() else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        Path::new(&name).extension().and_then(|e| e.to_str()).is_some_and(|e| PICKLES.contains(&e))
    })
}

fn flags(more: OFlags) -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK | more).bits().cast_signed()
}

/// What the system said, without a path.
fn reason(error: &std::io::Error) -> String {
    match rustix::io::Errno::from_io_error(error) {
        Some(rustix::io::Errno::LOOP) => "is a link".into(),
        // A pipe without a writer, or a socket, opened without waiting.
        Some(rustix::io::Errno::NXIO) => "is not a regular file".into(),
        _ => error.kind().to_string(),
    }
}

fn refuse<T>(text: String) -> Result<T, RegistryError> {
    Err(RegistryError::Directory(text))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    const CONFIG: &str = PEFT[0];
    const TENSORS: &str = PEFT[1];

    fn root() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("poet");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(CONFIG), b"{}").unwrap();
        fs::write(folder.join(TENSORS), b"tensors").unwrap();
        (root, folder)
    }

    fn fault(root: &tempfile::TempDir, name: &str) -> String {
        let Err(RegistryError::Directory(text)) = read(root.path(), name, 100) else { panic!("`{name}` was taken") };
        assert!(!text.contains(root.path().to_str().unwrap()), "{text}");
        text
    }

    #[test]
    fn the_two_files_are_read_and_others_ignored() {
        let (root, folder) = root();
        fs::write(folder.join("adapter_model.bin"), b"pickle").unwrap();
        fs::write(folder.join("README.md"), b"x").unwrap();
        let files = read(root.path(), "poet", 100).unwrap();
        assert_eq!((files.config, files.tensors), (b"{}".to_vec(), b"tensors".to_vec()));
    }

    #[test]
    fn a_whole_model_is_read_where_there_is_no_adapter() {
        let (root, folder) = root();
        fs::write(folder.join(FULL[0]), b"whole").unwrap();
        fs::write(folder.join(FULL[1]), b"weights").unwrap();
        assert_eq!(read(root.path(), "poet", 100).unwrap().config, b"{}");
        fs::remove_file(folder.join(CONFIG)).unwrap();
        let files = read(root.path(), "poet", 100).unwrap();
        assert_eq!((files.config, files.tensors), (b"whole".to_vec(), b"weights".to_vec()));
        fs::remove_file(folder.join(FULL[1])).unwrap();
        assert!(fault(&root, "poet").contains(FULL[1]));
    }

    #[test]
    fn names_that_are_not_one_component_are_refused() {
        let (root, folder) = root();
        fs::create_dir(folder.join("deep")).unwrap();
        for name in ["", ".", "..", "poet/deep", "../poet", "/etc", "poet/", "poet\0", "pöt", "a b", &"a".repeat(256)]
        {
            assert!(fault(&root, name).contains("one name"), "{name}");
        }
        fault(&root, "absent");
    }

    #[test]
    fn links_are_refused_wherever_they_are() {
        let (root, folder) = root();
        symlink(&folder, root.path().join("link")).unwrap();
        fault(&root, "link");
        let inner = root.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join(CONFIG), b"{}").unwrap();
        // Even to a file of the same root.
        symlink("../poet/adapter_model.safetensors", inner.join(TENSORS)).unwrap();
        assert!(fault(&root, "inner").contains("is a link"));
        fs::remove_file(inner.join(TENSORS)).unwrap();
        symlink("/etc/hostname", inner.join(TENSORS)).unwrap();
        fault(&root, "inner");
        fs::remove_file(inner.join(TENSORS)).unwrap();
        fs::hard_link(folder.join(TENSORS), inner.join(TENSORS)).unwrap();
        assert!(fault(&root, "inner").contains("hard link"));
        assert!(fault(&root, "poet").contains("hard link"));
    }

    #[test]
    fn pipes_folders_and_devices_are_refused_without_waiting() {
        let (root, folder) = root();
        let tensors = folder.join(TENSORS);
        fs::remove_file(&tensors).unwrap();
        assert!(Command::new("mkfifo").arg(&tensors).status().unwrap().success());
        assert!(fault(&root, "poet").contains("not a regular file"));
        fs::remove_file(&tensors).unwrap();
        fs::create_dir(&tensors).unwrap();
        assert!(fault(&root, "poet").contains("not a regular file"));
        fs::remove_dir(&tensors).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&tensors).unwrap();
        assert!(fault(&root, "poet").contains("not a regular file"));
        fs::write(root.path().join("file"), b"x").unwrap();
        fault(&root, "file");
        assert!(Command::new("mkfifo").arg(root.path().join("pipe")).status().unwrap().success());
        fault(&root, "pipe");
    }

    #[test]
    fn size_is_bounded_before_reading() {
        let (root, folder) = root();
        read(root.path(), "poet", 9).unwrap();
        assert!(read(root.path(), "poet", 8).is_err());
        // 1 TiB that takes no space: were it read, this test would not end.
        fs::File::options().write(true).open(folder.join(TENSORS)).unwrap().set_len(1 << 40).unwrap();
        assert!(fault(&root, "poet").contains("limit"));
    }

    #[test]
    fn a_folder_with_pickles_only_is_told_why() {
        let (root, folder) = root();
        fs::remove_file(folder.join(TENSORS)).unwrap();
        assert!(!fault(&root, "poet").contains("safetensors files are taken"));
        for extension in PICKLES {
            let pickle = folder.join(format!("adapter_model.{extension}"));
            fs::write(&pickle, b"x").unwrap();
            assert!(fault(&root, "poet").contains("only safetensors files are taken"));
            fs::remove_file(pickle).unwrap();
        }
    }
}
