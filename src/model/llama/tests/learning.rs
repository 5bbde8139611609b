//! A block's own backward against that of candle's graph.

use std::collections::BTreeMap;

use candle_core::Var;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::lora::{Change, LinearDelta};
use crate::ops::seed;

pub(super) fn values(shape: &[usize], from: u64) -> Var {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(from);
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-0.5..0.5)).collect();
    Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap()).unwrap()
}

/// Low ranks on all layers of the first block, whole weights and norms on the second.
fn changes(model: &Llama) -> (BTreeMap<SiteId, Change>, Vec<Var>) {
    let (mut changes, mut vars) = (BTreeMap::new(), Vec::new());
    for (id, site) in model.sites().iter().enumerate() {
        let from = 10 * id as u64;
        let change = if site.path.contains("layers.1.") {
            let shape = if site.kind == SiteKind::Norm { vec![site.output] } else { vec![site.output, site.input] };
            vars.push(values(&shape, from));
            Change::Replaced { weight: vars[vars.len() - 1].as_tensor().clone(), bias: None }
        } else if site.path.contains("layers.0.") && site.kind == SiteKind::Linear {
            vars.extend([values(&[3, site.input], from), values(&[site.output, 3], from + 1)]);
            let [a, b] = [vars.len() - 2, vars.len() - 1].map(|var| vars[var].as_tensor().t().unwrap());
            let b = (b * 2.0).unwrap();
            Change::Linear(LinearDelta::new(a, b, 2.0))
        } else {
            continue;
        };
        changes.insert(SiteId(id), change);
    }
    (changes, vars)
}

#[test]
fn a_blocks_own_backward_is_that_of_its_graph() {
    for mut config in [mistral(), llama()] {
        config["attention_bias"] = false.into();
        config["mlp_bias"] = false.into();
        let model = model(&config);
        let (changes, vars) = changes(&model);
        let rows = 45;
        let run = Run { adapter: Arc::new(Adapter::unnamed(changes)), rows: 0..rows, scale: 1.0 };
        let lora = LoraBatch { runs: vec![run], dropout: None };
        let layout = model.layout(&Input::Tokens { ids: &ids(rows, 3), lengths: &[30, 1, 14] }).unwrap();
        let hidden = model.config.hidden_size;
        for layer in 0..2 {
            let (x, gradient) = (values(&[rows, hidden], 1), values(&[rows, hidden], 2));
            let graph = model.block(layer, x.as_tensor(), &layout, &lora).unwrap();
            let (output, own) = model.learn(layer, x.as_tensor(), &layout, &lora).unwrap().unwrap();
            assert!(largest(&output, &graph) < ROUNDING);

            let expected = seed(&graph, gradient.as_tensor().clone()).unwrap().backward().unwrap();
            let (for_x, learnt) = own(gradient.as_tensor()).unwrap();
            let difference = largest(&for_x, expected.get(x.as_tensor()).unwrap());
            assert!(difference < ROUNDING, "layer {layer}: {difference}");
            let seeds = learnt.into_iter().map(|(tensor, gradient)| seed(&tensor, gradient).unwrap());
            let start = seeds.reduce(|sum, seed| (sum + seed).unwrap()).unwrap();
            let got = start.backward().unwrap();
            let mut compared = 0;
            for var in &vars {
                let (Some(got), Some(expected)) = (got.get(var.as_tensor()), expected.get(var.as_tensor())) else {
                    assert!(got.get(var.as_tensor()).is_none() && expected.get(var.as_tensor()).is_none());
                    continue;
                };
                assert!(largest(got, expected) < ROUNDING, "layer {layer}: {}", largest(got, expected));
                compared += 1;
            }
            assert_eq!(compared, [14, 9][layer]);
        }
        let dropped = LoraBatch { dropout: Some(crate::lora::Dropout { rate: 0.5, seed: 1 }), ..lora };
        assert!(model.learn(0, values(&[rows, hidden], 1).as_tensor(), &layout, &dropped).unwrap().is_none());
    }
}

/// The largest difference, in parts of the largest number.
fn largest(a: &Tensor, b: &Tensor) -> f32 {
    let most = |x: Tensor| x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    most((a - b).unwrap()) / most(b.clone())
}

/// Output and gradients of both blocks on a device, by their own backward or by the graph's, as f32 on the CPU.
#[cfg(feature = "cuda")]
fn computed(config: &serde_json::Value, (device, dtype): (&str, &str), own: bool) -> Vec<Tensor> {
    let folder = tempfile::tempdir().unwrap();
    let parsed = Config::parse(config.to_string().as_bytes()).unwrap();
    write(folder.path(), config, &tensors(&parsed, 7), 1);
    let model = open(folder.path(), device, dtype).unwrap();
    let on =
        |var: &Var, dtype: DType| Var::from_tensor(&var.to_device(&model.device).unwrap().to_dtype(dtype).unwrap());
    let (changes, vars) = changes(&model);
    // Small, or sharp shares make much of the rounding of scores.
    let smaller = |var: &Var| Var::from_tensor(&(var.as_tensor() * 0.25).unwrap()).unwrap();
    let vars: Vec<Var> = vars.iter().map(|var| on(&smaller(var), DType::F32).unwrap()).collect();
    // The same changes, of variables on the device.
    let mut left = vars.iter();
    let mut next = || left.next().unwrap().as_tensor().clone();
    let moved = changes.into_iter().map(|(site, change)| {
        let change = match change {
            Change::Replaced { .. } => Change::Replaced { weight: next(), bias: None },
            Change::Linear(_) | Change::Embedding { .. } | Change::Bias(_) => {
                let (a, b) = (next().t().unwrap(), (next().t().unwrap() * 2.0).unwrap());
                Change::Linear(LinearDelta::new(a, b, 2.0))
            }
        };
        (site, change)
    });
    let adapter = Arc::new(Adapter::unnamed(moved.collect()));
    let rows = 75;
    let lora = LoraBatch { runs: vec![Run { adapter, rows: 0..rows, scale: 1.0 }], dropout: None };
    let layout = model.layout(&Input::Tokens { ids: &ids(rows, 3), lengths: &[30, 1, 44] }).unwrap();
    let mut all = Vec::new();
    for layer in 0..2 {
        let [x, gradient] =
            [1, 2].map(|seed| on(&values(&[rows, model.config.hidden_size], seed), model.dtype).unwrap());
        let (for_x, gradients) = if own {
            let (output, own) = model.learn(layer, x.as_tensor(), &layout, &lora).unwrap().unwrap();
            all.push(output);
            let (for_x, learnt) = own(gradient.as_tensor()).unwrap();
            let seeds = learnt.into_iter().map(|(tensor, gradient)| seed(&tensor, gradient).unwrap());
            (for_x, seeds.reduce(|sum, seed| (sum + seed).unwrap()).unwrap().backward().unwrap())
        } else {
            let output = model.block(layer, x.as_tensor(), &layout, &lora).unwrap();
            all.push(output.detach());
            let gradients = seed(&output, gradient.as_tensor().clone()).unwrap().backward().unwrap();
            (gradients.get(x.as_tensor()).unwrap().clone(), gradients)
        };
        all.push(for_x);
        all.extend(vars.iter().filter_map(|var| gradients.get(var.as_tensor()).cloned()));
    }
    assert_eq!(all.len(), 2 + 14 + 2 + 9);
    all.iter().map(|x| x.to_dtype(DType::F32).unwrap().to_device(&Device::Cpu).unwrap()).collect()
}

#[cfg(feature = "cuda")]
#[test]
fn on_gpu_a_block_has_the_gradients_of_the_cpu_by_either_way() {
    for mut config in [mistral(), llama()] {
        config["attention_bias"] = false.into();
        config["mlp_bias"] = false.into();
        let expected = computed(&config, ("cpu", "f32"), true);
        // In parts of the whole: bf16 has 8 bits, and a block rounds about ten times.
        for (dtype, tolerance) in [("f32", ROUNDING), ("bf16", 0.04)] {
            for own in [true, false] {
                let got = computed(&config, ("cuda", dtype), own);
                let distances: Vec<_> = got.iter().zip(&expected).map(|(a, b)| distance(a, b)).collect();
                assert!(distances.iter().all(|far| *far < tolerance), "{dtype}, own {own}: {distances:?}");
            }
        }
    }
}

/// The length of the difference, in parts of the length.
#[cfg(feature = "cuda")]
fn distance(a: &Tensor, b: &Tensor) -> f32 {
    let length = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    length(&(a - b).unwrap()) / length(b)
}
