//! Reads images of a folder below the configured one, as a CSV listing in it names them.
//!
//! Hostile until read: names have plain components only, nothing is a link, files are regular and have no second name
//! elsewhere, sizes are bounded before a byte is read. In two steps, so that the caller knows how much memory the second
//! takes: [`Folder::open`] reads the listing and looks at every file, [`Folder::read`] reads the images. Error texts name
//! files as the caller did, never where the configured folder lies. What comes out are lines of `image_row`.

use std::io::Read;
use std::path::{Component, Path};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, Metadata, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::OFlags;

use super::build::Builder;
use super::fault::{FaultKind, Faults, shown};
use super::image_row::{ImageRow, image_line, line_size};
use super::{Content, ContentColumns, Dataset, DatasetError, Declaration, Format, Label, Limits, Row, SplitRule, csv};
use crate::model::image::ImageError;

/// Largest listing.
pub const MOST_LISTING: u64 = 32 << 20;

/// A folder of images whose listing was read.
#[derive(Debug)]
pub struct Folder {
    folder: Dir,
    /// Of the listing.
    declaration: Declaration,
    limits: Limits,
    /// Rows with the names of their files and the files' sizes.
    rows: Vec<(String, u64, ImageRow)>,
    bytes: u64,
}

impl Folder {
    /// Reads `listing` in `directory` below `root`, and looks at every file that it names.
    ///
    /// # Errors
    /// [`DatasetError::Folder`] names a folder or listing that cannot be read, [`DatasetError::Invalid`] every fault of
    /// the declaration, the listing and the files.
    pub fn open(
        root: &Path,
        directory: &str,
        listing: &str,
        declaration: &Declaration,
        limits: Limits,
    ) -> Result<Self, DatasetError> {
        let declaration = Declaration { format: Format::Csv, ..declaration.clone() };
        declaration.check()?;
        let folder =
            open_folder(root, directory).map_err(|fault| DatasetError::Folder { field: "directory", fault })?;
        let text = open_file(&folder, listing, MOST_LISTING).and_then(|(file, size)| read(file, size));
        let unread = |fault| DatasetError::Folder { field: "listing", fault: format!("`{}` {fault}", shown(listing)) };
        let text = text.map_err(|fault| unread(fault.to_string()))?;
        let rows = rows(&text, &declaration, limits)?;
        let mut faults = Faults::default();
        let mut listed = Vec::with_capacity(rows.len());
        let mut bytes: u64 = 0;
        for (number, (name, row)) in (1..).zip(rows) {
            match look(&folder, &name, limits.image.bytes) {
                Ok(size) => {
                    bytes = bytes.saturating_add(line_size(&declaration, size, &row));
                    listed.push((name, size, row));
                }
                Err(kind) => faults.add(Some(number), declaration.image_column(), kind),
            }
            if faults.full() {
                break;
            }
        }
        faults.finish(())?;
        Ok(Self { folder, declaration, limits, rows: listed, bytes })
    }

    /// Returns the bytes that [`Self::read`] will return.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the images: a file of JSONL, and what is to be declared of it.
    ///
    /// # Errors
    /// [`DatasetError::Invalid`] names every file that cannot be read any more or has changed.
    pub fn read(self) -> Result<(Vec<u8>, Declaration), DatasetError> {
        let mut faults = Faults::default();
        let mut lines = Vec::with_capacity(usize::try_from(self.bytes).unwrap_or(0));
        for (number, (name, size, row)) in (1..).zip(&self.rows) {
            let opened = open_file(&self.folder, name, self.limits.image.bytes);
            let image = opened.and_then(|(file, found)| if found == *size { read(file, found) } else { changed() });
            match image {
                Ok(image) => lines.extend(image_line(&self.declaration, &image, row)),
                Err(kind) => faults.add(Some(number), self.declaration.image_column(), kind),
            }
            if faults.full() {
                break;
            }
        }
        let declaration = Declaration { format: Format::Jsonl, csv_delimiter: ',', ..self.declaration };
        Ok(faults.finish((lines, declaration))?)
    }
}

/// Reads the listing: names of files with what is said of them.
fn rows(text: &[u8], declaration: &Declaration, limits: Limits) -> Result<Vec<(String, ImageRow)>, DatasetError> {
    // The names are the texts of a data set of the same labels, groups and parts.
    let mut groups = declaration.groups.clone();
    if let SplitRule::Seeded { grouping: Some(column), .. } = &declaration.split
        && !groups.contains(column)
    {
        groups.push(column.clone());
    }
    let image = declaration.image_column().unwrap_or_default();
    let content = ContentColumns::Text(image.to_owned());
    let texts = Declaration { content, groups, ..declaration.clone() };
    let mut builder = Builder::new(&texts, limits);
    csv::read(text, declaration.csv_delimiter, &mut builder);
    let Dataset { labels, group_columns, rows, .. } = builder.finish(String::new())?;
    let names = |classes: &[usize]| classes.iter().map(|class| labels[*class].clone()).collect();
    let by_column = matches!(declaration.split, SplitRule::Column(_));
    let of_row = |row: Row| {
        let name = match row.content {
            Content::Text(name) => name,
            Content::Completion { .. } | Content::Messages(_) | Content::Image(_) => String::new(),
        };
        let labels = match &row.label {
            None => Vec::new(),
            Some(Label::Class(class)) => names(&[*class]),
            Some(Label::Classes(classes)) => names(classes),
        };
        let values = group_columns.iter().cloned().zip(row.groups);
        let values = values.filter_map(|(column, value)| Some((column, value?))).collect();
        (name, ImageRow { labels, split: by_column.then_some(row.split), values })
    };
    Ok(rows.into_iter().map(of_row).collect())
}

/// Opens a folder; each of its components must be one.
fn open_folder(root: &Path, directory: &str) -> Result<Dir, String> {
    let named = || format!("`{}`", shown(directory));
    let mut folder = Dir::open_ambient_dir(root, ambient_authority())
        .map_err(|_| "the folder of `datasets.import_dir` cannot be opened".to_owned())?;
    let components = components(directory).ok_or_else(|| format!("{} must be a path below the folder", named()))?;
    for component in components {
        // Neither a link nor a pipe in place of a folder is followed or waited for.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags(OFlags::DIRECTORY));
        let opened = folder.open_with(component, &options);
        let opened = opened.map_err(|error| format!("{} {}", named(), reason(&error)))?;
        folder = Dir::from_std_file(opened.into_std());
    }
    Ok(folder)
}

/// Splits a relative path that goes down only.
fn components(path: &str) -> Option<Vec<&std::ffi::OsStr>> {
    let parts = Path::new(path).components().map(|component| match component {
        Component::Normal(part) => Some(part),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    });
    parts.collect::<Option<Vec<_>>>().filter(|parts| !parts.is_empty() && !path.contains('\0'))
}

/// Looks at an image without opening it: its size.
fn look(folder: &Dir, name: &str, limit: u64) -> Result<u64, FaultKind> {
    components(name).ok_or_else(|| FaultKind::Value("must be a path below the folder".to_owned()))?;
    check(&folder.symlink_metadata(name).map_err(|error| FaultKind::Value(reason(&error)))?, limit)
}

/// Opens a file and returns its size with it.
fn open_file(folder: &Dir, name: &str, limit: u64) -> Result<(File, u64), FaultKind> {
    components(name).ok_or_else(|| FaultKind::Value("must be a path below the folder".to_owned()))?;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags(OFlags::empty()));
    let unread = |error: std::io::Error| FaultKind::Value(reason(&error));
    let file = folder.open_with(name, &options).map_err(unread)?;
    let size = check(&file.metadata().map_err(unread)?, limit)?;
    Ok((file, size))
}

fn check(metadata: &Metadata, limit: u64) -> Result<u64, FaultKind> {
    let refused = |text: &str| Err(FaultKind::Value(text.to_owned()));
    if metadata.is_symlink() {
        return refused("is a link");
    }
    if !metadata.is_file() {
        return refused("is not a regular file");
    }
    if metadata.nlink() > 1 {
        return refused("has a second name (hard link)");
    }
    match metadata.len() {
        size if size > limit => Err(ImageError::Bytes { bytes: size, limit }.into()),
        size => Ok(size),
    }
}

fn read(file: File, size: u64) -> Result<Vec<u8>, FaultKind> {
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(size + 1).read_to_end(&mut content).map_err(|error| FaultKind::Value(reason(&error)))?;
    if content.len() as u64 == size { Ok(content) } else { changed() }
}

fn changed<T>() -> Result<T, FaultKind> {
    Err(FaultKind::Value("changed while it was read".to_owned()))
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
        _ => format!("cannot be read: {}", error.kind()),
    }
}
