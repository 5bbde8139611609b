//! A block's own backward against that of candle's graph, for both image classifiers.

use super::*;
use crate::lora::LinearDelta;
use crate::model::Differentiable;

/// Gradients of what an adapter is made of and of a block's input, by the graph or by the block itself.
fn block_gradients(
    trained: &dyn Differentiable,
    layer: usize,
    own: bool,
    vars: &[Var],
    lora: &LoraBatch,
) -> Vec<Tensor> {
    let images = lora.runs[0].rows.end;
    let input = Input::Pixels(vars[0].as_tensor());
    let layout = trained.layout(&input).unwrap();
    let mut x = trained.embed(&layout, &LoraBatch::default()).unwrap();
    for before in 0..layer {
        x = trained.block(before, &x, &layout, &LoraBatch::default()).unwrap();
    }
    let x = Var::from_tensor(&x.detach()).unwrap();
    let graph = trained.block(layer, x.as_tensor(), &layout, lora).unwrap();
    assert_eq!(graph.dim(0).unwrap() % images, 0);
    let gradient = random(graph.dims(), 4).to_device(graph.device()).unwrap();
    let (start, for_x) = if own {
        let (output, own) = trained.learn(layer, x.as_tensor(), &layout, lora).unwrap().unwrap();
        assert!(difference(&output, &graph) < 1e-5, "block {layer}");
        let (for_x, learnt) = own(&gradient).unwrap();
        let seeds = learnt.into_iter().map(|(tensor, gradient)| crate::ops::seed(&tensor, gradient).unwrap());
        (seeds.reduce(|sum, seed| (sum + seed).unwrap()).unwrap(), Some(for_x))
    } else {
        (crate::ops::seed(&graph, gradient).unwrap(), None)
    };
    let found = start.backward().unwrap();
    let mut gradients = vec![for_x.unwrap_or_else(|| found.get(x.as_tensor()).unwrap().clone())];
    gradients.extend(vars[1..].iter().filter_map(|var| found.get(var.as_tensor()).cloned()));
    gradients
}

/// Compares the gradients of every block of a model with a backward of its own with those of its graph.
fn compare(config: &Value, model: &dyn ImageModel) {
    let trained = model.differentiable().unwrap();
    let on = |x: &Tensor| Var::from_tensor(&x.to_device(trained.base().device()).unwrap()).unwrap();
    let mut vars = vec![on(&pixels(config, 3))];
    let mut var = |shape: &[usize]| {
        vars.push(on(&(random(shape, vars.len() as u64) * 0.3).unwrap()));
        vars[vars.len() - 1].as_tensor().clone()
    };
    // Low ranks on some layers, others as a whole, with the norms of every second block.
    let (mut changes, shared) = (BTreeMap::new(), ["logit_scale", "continuous_position_bias"]);
    for (i, site) in trained.base().sites().iter().enumerate() {
        let change = match site.kind {
            _ if shared.iter().any(|name| site.path.contains(name)) => continue,
            SiteKind::Linear if i % 3 > 0 => {
                let (a, b) = (var(&[2, site.input]).t().unwrap(), var(&[site.output, 2]).t().unwrap());
                let b = (b * 2.0).unwrap();
                Change::Linear(LinearDelta::new(a, b, 2.0))
            }
            SiteKind::Linear | SiteKind::Norm if i % 2 == 0 => {
                let bias = site.bias.then(|| var(&[site.output]));
                Change::Replaced { weight: var(&site.shape()), bias }
            }
            SiteKind::Linear
            | SiteKind::Head
            | SiteKind::Embedding
            | SiteKind::Norm
            | SiteKind::Patches(_)
            | SiteKind::Parameter(_)
            | SiteKind::Classifier => continue,
        };
        changes.insert(SiteId(i), change);
    }
    let run = Run { adapter: Arc::new(Adapter::unnamed(changes)), rows: 0..3, scale: 1.0 };
    let lora = LoraBatch { runs: vec![run], dropout: None };
    // The last one of a Swin is the pooling, which has the graph.
    let blocks = trained.depth() - usize::from(config["model_type"] != "vit");
    for layer in 0..blocks {
        let [own, graph] = [true, false].map(|own| block_gradients(trained, layer, own, &vars, &lora));
        assert!(own.len() == graph.len() && own.len() > 4, "{} of {}", own.len(), graph.len());
        for (i, (own, graph)) in own.iter().zip(&graph).enumerate() {
            let size = graph.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
            assert!(difference(own, graph) < 1e-4 * size.max(1.0), "block {layer}, gradient {i} of {config}");
        }
    }
    let dropped = LoraBatch { dropout: Some(crate::lora::Dropout { rate: 0.5, seed: 1 }), ..lora };
    let layout = trained.layout(&Input::Pixels(vars[0].as_tensor())).unwrap();
    let x = trained.embed(&layout, &LoraBatch::default()).unwrap();
    assert!(trained.learn(0, &x, &layout, &dropped).unwrap().is_none());
}

#[test]
fn a_blocks_own_backward_is_that_of_its_graph() {
    for config in [vit(), swin()] {
        compare(&config, &*open_model(&config));
    }
}

#[cfg(feature = "cuda")]
#[test]
fn on_gpu_a_blocks_own_backward_is_that_of_its_graph() {
    let mut config = vit();
    (config["hidden_size"], config["qkv_bias"]) = (64.into(), true.into());
    compare(&config, &*open_on(&config, "cuda"));
    // The graph is that of the CPU, or nearly.
    let (own, theirs) = (open_on(&config, "cuda"), open_model(&config));
    let image = pixels(&config, 3);
    let classify = |model: &dyn ImageModel| {
        let logits = model.classify(&image, &LoraBatch::default()).unwrap();
        logits.to_device(&Device::Cpu).unwrap()
    };
    assert!(difference(&classify(&*own), &classify(&*theirs)) < 1e-4);
}
