//! Rows of images: what cannot be read names its row, before anything is computed where the header shows it.

use std::fs;

use super::*;
use crate::model::load_images;

fn file(name: &str) -> Content {
    Content::Image(fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)).unwrap().into())
}

/// The small golden ViT, with other settings of its image processor.
fn context(processor: &str) -> ImageContext {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("vision").join("vit").join(name), folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("preprocessor_config.json"), processor).unwrap();
    let model = load_images(folder.path(), "vit", "cpu", "f32").unwrap();
    ImageContext { model, name: "vit".to_owned() }
}

fn settings() -> Settings {
    Settings { max_tokens: None, ..asking(Task::Head) }
}

fn pictures(context: &ImageContext, names: &[&str]) -> Dataset {
    let labels = context.model.info().classes.clone().unwrap().names;
    let rows = names.iter().enumerate().map(|(i, name)| row(file(name), Some(i % 2), &["a"])).collect();
    dataset(&labels.iter().map(String::as_str).collect::<Vec<_>>(), &["group"], rows)
}

fn fault(error: AuditError) -> (usize, String) {
    let AuditError::Row { row, column: None, fault } = error else { panic!("{error}") };
    (row, fault)
}

#[test]
fn an_image_that_cannot_be_decoded_names_its_row() {
    let context = context(r#"{"size": 32}"#);
    // The first row twice: units are not rows.
    let dataset =
        pictures(&context, &["rgb.png", "rgb.png", "grey.jpg", "rgba.png", "rgb.jpg", "lossy.webp", "damaged.png"]);
    let mut scorer = Scorer::begin(&context, &dataset, &settings(), base()).unwrap();
    let error = std::iter::repeat_with(|| scorer.advance(&Endless)).find_map(Result::err).unwrap();
    let (row, text) = fault(error);
    assert_eq!(row, 7);
    assert!(text.starts_with("is a damaged image"), "{text}");
}

#[test]
fn an_image_of_a_size_that_nothing_resizes_is_told_at_the_start() {
    let context = context(r#"{"do_resize": false}"#);
    let dataset = pictures(&context, &["rgb.png"]);
    let (row, text) = fault(Scorer::begin(&context, &dataset, &settings(), base()).unwrap_err());
    assert_eq!(row, 1);
    assert!(text.contains("11 x 7") && text.contains("does not resize"), "{text}");
}
