//! Images that are made to harm: each is told by its place, none disturbs what else the server does.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use evenkeel::rpc::pb;
use tonic::Code;

use super::{VIT, classify, logits, png, some_images, start, start_with};
use crate::client::{self, eventually, refused, violations};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)).unwrap()
}

/// Many pixels in few bytes.
fn bomb(side: u32) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    image::GrayImage::new(side, side).write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

#[tokio::test]
async fn hostile_images_are_told_one_by_one_beside_requests_that_are_answered() {
    let server = start(&[VIT]).await;
    let client = &server.client;
    let images = some_images();
    let expected = logits(&classify(client, ("", ""), &images).await.unwrap());
    let language = client::greedy("", "Winter light", 8);
    let text = client.generate(language.clone()).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let good = (0..3).map(|_| {
        let (client, over, images, expected) = (client.clone(), Arc::clone(&over), images.clone(), expected.clone());
        let (language, text) = (language.clone(), text.clone());
        tokio::spawn(async move {
            let mut rounds = 0;
            while !over.load(Ordering::Acquire) || rounds == 0 {
                assert_eq!(logits(&classify(&client, ("", ""), &images).await.unwrap()), expected);
                assert_eq!(client.generate(language.clone()).await.unwrap().choices, text.choices);
                rounds += 1;
            }
        })
    });
    let good: Vec<_> = good.collect();
    let hostile = [
        ("other.txt", "is no JPEG, PNG or WebP image"),
        ("other.gif", "GIF is not supported"),
        ("truncated_rgb.jpg", "truncated"),
        ("truncated_rgb.png", "truncated"),
        ("damaged.png", "damaged"),
        ("huge.png", "100000 x 100000"),
        ("huge.jpg", "65535 x 65535"),
        ("empty.png", "0 x 0"),
        ("cmyk.jpg", "CMYK is not supported"),
    ];
    for (name, told) in hostile {
        let asked = [images[0].clone(), file(name)];
        let status = refused(classify(client, ("", ""), &asked).await, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status), ["inputs[1].image"], "{name}");
        assert!(status.message().contains(told), "{name}: {status:?}");
    }
    // What has a defined result: 16 bits, the first frame of an animation, alpha, grey.
    let sound = ["grey_16.png", "rgba_16.png", "animated.webp", "animated.png", "rgba.png", "grey.jpg"].map(file);
    let answer = classify(client, ("", ""), &sound).await.unwrap();
    assert_eq!(answer.classifications.len(), sound.len());
    over.store(true, Ordering::Release);
    for task in good {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn limits_of_images_are_those_of_the_settings() {
    let server = start_with(&[VIT], |settings| {
        settings.engine.max_image_bytes = 4000;
        settings.engine.max_image_pixels = 2000;
        settings.engine.max_request_pixels = 3500;
    });
    let server = server.await;
    let client = &server.client;
    let limits = client.server.clone().get_server_info(pb::GetServerInfoRequest {}).await.unwrap().into_inner().limits;
    let limits = limits.unwrap();
    let told = (limits.max_image_bytes, limits.max_image_pixels, limits.max_request_pixels);
    assert_eq!(told, (4000, 2000, 3500));
    let small = png(40, 40, [1, 2, 3], 1);
    classify(client, ("", ""), &[small.clone(), small.clone()]).await.unwrap();
    let together = classify(client, ("", ""), &vec![small.clone(); 3]).await;
    let status = refused(together, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["inputs"]);
    assert!(status.message().contains("4800 pixels together, over the limit of 3500"), "{status:?}");
    let noise = image::RgbImage::from_fn(40, 40, |x, y| {
        let bits = (x * 40 + y + 1).wrapping_mul(2_654_435_761);
        image::Rgb([8, 16, 24].map(|shift| (bits >> shift) as u8))
    });
    let mut heavy = std::io::Cursor::new(Vec::new());
    noise.write_to(&mut heavy, image::ImageFormat::Png).unwrap();
    for (large, told) in [(bomb(64), "over the limit of 2000 pixels"), (heavy.into_inner(), "over the limit of 4000")] {
        let asked = classify(client, ("", ""), &[small.clone(), large]).await;
        let status = refused(asked, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status), ["inputs[1].image"]);
        assert!(status.message().contains(told), "{status:?}");
    }
}

#[tokio::test]
async fn a_full_queue_is_told_before_anything_is_decoded_and_who_leaves_gives_back_the_places() {
    let server = start_with(&[VIT], |settings| {
        settings.engine.max_waiting_images = 32;
        settings.engine.max_request_pixels = 1 << 40;
        settings.engine.max_decoding_images = 1;
    });
    let server = server.await;
    let client = &server.client;
    let own = client.clone();
    let bombs = vec![bomb(2000); 32];
    let hostile = tokio::spawn(async move {
        loop {
            // It needs all places: as long as somebody else has one, it is refused itself.
            match classify(&own, ("", ""), &bombs).await {
                // A large request that is refused may lose its connection.
                Err(status) if [Code::ResourceExhausted, Code::Unknown].contains(&status.code()) => {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                Ok(_) => {}
                Err(status) => panic!("{status:?}"),
            }
        }
    });
    let one = [png(20, 20, [1, 2, 3], 1)];
    let full = eventually("a full queue", async || {
        assert!(!hostile.is_finished());
        classify(client, ("", ""), &one).await.err().filter(|status| status.code() != Code::Unknown)
    });
    refused::<()>(Err(full.await), Code::ResourceExhausted, "QUEUE_FULL");
    // Language has threads of its own.
    client.generate(client::greedy("", "Winter light", 8)).await.unwrap();
    assert!(!hostile.is_finished());
    hostile.abort();
    eventually("places given back", async || classify(client, ("", ""), &one).await.ok()).await;
}
