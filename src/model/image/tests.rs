//! Tests of `image`: Pillow's own results on files of every kind, settings good and bad, and bytes of strangers.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Levels that a JPEG may differ by: another inverse transform and chroma filter.
const JPEG_LEVELS: u8 = 10;
/// The same for lossy WebP, whose transform is exact: chroma only.
const WEBP_LEVELS: u8 = 4;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap()
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn processor(settings: &Value, size: Option<[usize; 2]>) -> Result<Processor, String> {
    Processor::parse(settings.to_string().as_bytes(), size).map_err(|error| error.to_string())
}

/// Leaves pixels as they are.
fn plain() -> Processor {
    processor(&json!({"do_resize": false, "do_rescale": false, "do_normalize": false}), None).unwrap()
}

#[test]
fn files_of_every_kind_are_read_as_pillow_reads_them() {
    let expected: Value = serde_json::from_slice(&file("expected.json")).unwrap();
    let expected = expected.as_object().unwrap();
    assert!(expected.len() > 20);
    for (name, expected) in expected {
        let got = plain().resized(&file(name));
        if expected.is_null() {
            assert!(matches!(got, Err(ImageError::Unsupported(_))), "{name}: {got:?}");
            continue;
        }
        let got = got.unwrap_or_else(|error| panic!("{name}: {error}"));
        let bytes = hex::decode(expected["rgb"].as_str().unwrap()).unwrap();
        let levels = match name.as_str() {
            jpeg if jpeg.ends_with(".jpg") => JPEG_LEVELS,
            "lossy.webp" | "lossy_alpha.webp" => WEBP_LEVELS,
            _ => 0,
        };
        assert_eq!(got.len(), bytes.len(), "{name}");
        let worst = got.iter().zip(&bytes).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= levels, "{name}: {worst} levels");
        let header = inspect(&file(name), Limits::MOST).unwrap();
        let size = [header.width, header.height];
        assert_eq!(serde_json::to_value(size).unwrap(), expected["size"], "{name}");
    }
}

#[test]
fn faulty_files_are_told_apart() {
    let read = |name: &str| plain().pixels(&file(name)).unwrap_err();
    for (name, text) in [("other.gif", "GIF"), ("other.tif", "TIFF"), ("other.bmp", "BMP"), ("cmyk.jpg", "CMYK")] {
        assert_eq!(read(name), ImageError::Unsupported(text.into()), "{name}");
    }
    for name in ["truncated_rgb.png", "truncated_rgb.jpg", "truncated_lossless.webp"] {
        assert_eq!(read(name), ImageError::Truncated, "{name}");
    }
    assert_eq!(read("other.txt"), ImageError::Unknown);
    assert_eq!(plain().pixels(b""), Err(ImageError::Unknown));
    let limit = MOST_IMAGE_PIXELS;
    assert_eq!(read("huge.png"), ImageError::Pixels { width: 100_000, height: 100_000, limit });
    assert_eq!(read("huge.jpg"), ImageError::Pixels { width: 65_535, height: 65_535, limit });
    assert_eq!(read("empty.png"), ImageError::Empty { width: 0, height: 0 });
    assert!(matches!(read("damaged.png"), ImageError::Damaged(_)));
    let limits = Limits { bytes: 10, pixels: 1 };
    assert!(matches!(inspect(&file("rgb.png"), limits), Err(ImageError::Bytes { limit: 10, .. })));
    let limits = Limits { pixels: 76, ..Limits::MOST };
    assert_eq!(inspect(&file("rgb.png"), limits), Err(ImageError::Pixels { width: 11, height: 7, limit: 76 }));
}

#[test]
fn a_frame_larger_than_its_file_says_is_refused() {
    // VP8X of 1 x 1 around a lossless image of 16384 x 16384.
    let mut webp = b"RIFF\x28\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0VP8L\x0a\0\0\0\x2f".to_vec();
    webp.extend([0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0, 0, 0]);
    let read = inspect(&webp, Limits::MOST);
    assert_eq!(read, Err(ImageError::Damaged("a frame is larger than its WebP".into())));
}

#[test]
fn a_flip_mirrors_rows() {
    let pixels = plain().pixels(&file("rgb.png")).unwrap();
    let flipped = plain().augmented(&file("rgb.png"), true).unwrap();
    assert_ne!(pixels, flipped);
    let mirrored: Vec<f32> = pixels.chunks(11).flat_map(|row| row.iter().rev().copied()).collect();
    assert_eq!(flipped, mirrored);
}

#[test]
fn a_crop_takes_the_middle_or_a_black_border() {
    let image = Rgb { width: 3, height: 1, bytes: (1..=9).collect() };
    let cropped = |width, height| crop(&image, width, height).bytes;
    assert_eq!(cropped(1, 1), [4, 5, 6]);
    assert_eq!(cropped(2, 1), [1, 2, 3, 4, 5, 6]);
    // `center_crop` of transformers puts the larger half of a border first.
    assert_eq!(cropped(4, 1), [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(cropped(1, 3), [0, 0, 0, 4, 5, 6, 0, 0, 0]);
}

#[test]
fn the_shorter_side_decides_and_proportions_stay() {
    let settings =
        json!({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 5}, "do_center_crop": false});
    let bit = processor(&settings, None).unwrap();
    // 5 * 11 / 7 = 7.86, cut to 7.
    assert_eq!(bit.resized(&file("rgb.png")).unwrap().len(), 3 * 5 * 7);
    assert!(processor(&settings, Some([5, 5])).unwrap_err().contains("proportions"));
    let crop = json!({"image_processor_type": "CLIPImageProcessorFast", "size": 5, "crop_size": 4});
    assert_eq!(processor(&crop, Some([4, 4])).unwrap().pixels(&file("grey.png")).unwrap().len(), 3 * 4 * 4);
    assert!(matches!(Target::ShortestEdge(256).of([60_000, 1]), Err(ImageError::Narrow { .. })));
}

#[test]
fn a_model_takes_one_size() {
    let size = [8, 9];
    let vit = Processor::read(&folder(), size).unwrap();
    assert_eq!(vit.pixels(&file("rgb.jpg")).unwrap().len(), 3 * 8 * 9);
    let same = json!({"size": {"height": 8, "width": 9}, "image_processor_type": "ViTImageProcessorPil"});
    assert_eq!(processor(&same, Some(size)).unwrap(), vit);
    assert!(processor(&json!({"size": 8}), Some(size)).unwrap_err().contains("8 x 8; the model takes 9 x 8"));
    let as_it_is = processor(&json!({"do_resize": false}), Some(size)).unwrap();
    let error = as_it_is.pixels(&file("rgb.png")).unwrap_err();
    assert_eq!(error, ImageError::Size { width: 11, height: 7, expected: (9, 8) });
}

#[test]
fn settings_that_change_pixels_are_refused_by_name() {
    let cases = [
        (json!({"image_processor_type": "ConvNextImageProcessor"}), "`ConvNextImageProcessor`"),
        (json!({"crop_pct": 0.9}), "`crop_pct`"),
        (json!({"do_pad": true}), "`do_pad`"),
        (json!({"data_format": "channels_last"}), "`data_format`"),
        (json!({"resample": 6}), "`resample`"),
        (json!({"resample": -1}), "`resample`"),
        (json!({"size": {"shortest_edge": 3, "longest_edge": 4}}), "`size`"),
        (json!({"size": 0}), "`size`"),
        (json!({"size": 1e9}), "`size`"),
        (json!({"do_resize": 1}), "`do_resize`"),
        (json!({"do_center_crop": true}), "`crop_size`"),
        (json!({"crop_size": {"shortest_edge": 3}}), "`crop_size`"),
        (json!({"image_mean": [1, 2]}), "`image_mean`"),
        (json!({"image_std": [1, 0, 1]}), "`image_std`"),
        (json!({"rescale_factor": "x"}), "`rescale_factor`"),
        (json!([]), "preprocessor_config.json"),
    ];
    for (settings, text) in cases {
        let error = processor(&settings, None).unwrap_err();
        assert!(error.contains(text), "{settings}: {error}");
    }
    let harmless = json!({"do_pad": false, "crop_pct": null, "size": null, "data_format": "channels_first",
        "processor_class": "X", "do_convert_rgb": true, "do_center_crop": null});
    assert_eq!(processor(&harmless, None).unwrap(), processor(&json!({}), None).unwrap());
}

#[test]
fn filters_are_those_of_pillow() {
    // A single white pixel, enlarged and shrunk; from Pillow 13.0.0.
    let mut bytes = vec![0; 3 * 7];
    bytes[9..12].fill(255);
    let image = Rgb { width: 7, height: 1, bytes };
    let row = |filter, width| {
        let resized = resample::resize(image.clone(), width, 1, filter);
        resized.bytes.iter().step_by(3).copied().collect::<Vec<_>>()
    };
    for (filter, wide, narrow) in PILLOW {
        assert_eq!(row(filter, 10), wide, "{filter:?}");
        assert_eq!(row(filter, 3), narrow, "{filter:?}");
    }
}

/// `Image.resize((10, 1), filter)` and `((3, 1), filter)` of seven pixels with the fourth white.
const PILLOW: [(Filter, [u8; 10], [u8; 3]); 6] = [
    (Filter::Nearest, [0, 0, 0, 0, 255, 255, 0, 0, 0, 0], [0, 255, 0]),
    (Filter::Box, [0, 0, 0, 0, 255, 255, 0, 0, 0, 0], [0, 85, 0]),
    (Filter::Bilinear, [0, 0, 0, 0, 166, 166, 0, 0, 0, 0], [0, 105, 0]),
    (Filter::Hamming, [0, 0, 0, 0, 206, 206, 0, 0, 0, 0], [0, 129, 0]),
    (Filter::Bicubic, [0, 0, 0, 0, 193, 193, 0, 0, 0, 0], [0, 107, 0]),
    (Filter::Lanczos, [0, 6, 0, 0, 203, 203, 0, 0, 6, 0], [0, 106, 0]),
];

fn within_reason(name: &str) -> bool {
    ![".json", ".py"].iter().any(|end| name.ends_with(end))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_end(bytes: Vec<u8>, start in 0_usize..4) {
        let start = [&b""[..], b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBPVP8"][start];
        let _ = plain().pixels(&[start, &bytes].concat());
    }

    #[test]
    fn changed_files_end(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let names: Vec<String> = names().into_iter().filter(|name| within_reason(name)).collect();
        let mut bytes = file(which.get(&names).as_str());
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        // A sound result has the pixels that the header announced.
        if let Ok(pixels) = plain().pixels(&bytes) {
            let header = inspect(&bytes, Limits::MOST).unwrap();
            prop_assert_eq!(pixels.len() as u64, 3 * u64::from(header.width) * u64::from(header.height));
        }
    }
}
