"""Test that training on cached features equals Keras' own ``fit`` and is repeatable bit for bit."""

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.train.loops.head import Images, augmented, epoch_order, fit, seed_dropout
from mri_edge.train.models.network import build_network
from mri_edge.train.models.vgg16 import build_backbone


@pytest.fixture
def network(small_recipe, small_weights):
    def build(seed=0):
        size = small_recipe.preprocessing
        backbone = build_backbone(small_weights, size.height, size.width)
        return build_network(backbone, small_recipe.head, small_recipe.schedule.learning_rate, 2, seed)

    return build


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(7)

    def some(count):
        labels = rng.integers(0, 2, count)
        pixels = rng.integers(0, 120, (count, 32, 32, 3), dtype=np.uint8)
        pixels[labels == 1, 8:24, 8:24] = 240
        return Images(pixels, np.arange(count), labels)

    return some(22), some(9)


def weights_of(network):
    return [keras.ops.convert_to_numpy(variable) for variable in network.head.trainable_variables]


def test_fit_equals_keras_fit_on_the_same_pictures(network, small_recipe, pictures):
    train, validation = pictures
    ours, plain = network(), network()
    history = fit(ours, train, validation, small_recipe, seed=3)

    normalize = small_recipe.preprocessing.normalize
    targets = keras.utils.to_categorical(train.labels, 2)
    for epoch in range(1, small_recipe.schedule.epochs + 1):
        seed_dropout(plain.head, 3, epoch)
        order = epoch_order(len(train), 3, epoch)
        expected = plain.whole.fit(
            augmented(train, order, small_recipe, 3, epoch),
            targets[order],
            validation_data=(normalize(validation.pixels), keras.utils.to_categorical(validation.labels, 2)),
            batch_size=small_recipe.schedule.batch,
            shuffle=False,
            verbose=0,
        ).history
        received = history[epoch - 1]
        for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
            assert getattr(received, key) == pytest.approx(expected[key][0], abs=1e-4), (epoch, key)
    for left, right in zip(weights_of(ours), weights_of(plain), strict=True):
        # Adam divides by the size of the gradient, so a weight whose gradient is only rounding noise moves by up to the
        # learning rate, 1e-3, in either direction. A few such weights of 8,000 may differ by that much.
        np.testing.assert_allclose(left, right, atol=2e-3)
        assert np.mean(np.abs(left - right)) < 1e-5


def test_seed_determines_the_weights_bit_for_bit(network, small_recipe, pictures):
    results = []
    for seed in (1, 1, 2):
        trained = network(seed)
        fit(trained, *pictures, small_recipe, seed=seed)
        results.append(weights_of(trained))
    assert all(np.array_equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not np.array_equal(results[0][0], results[2][0])


def test_whole_and_head_share_weights_and_optimizer(network, small_recipe, pictures):
    trained = network()
    fit(trained, *pictures, small_recipe, seed=0)
    normalized = small_recipe.preprocessing.normalize(pictures[1].pixels)
    through_head = trained.head.predict_on_batch(trained.backbone.predict_on_batch(normalized))
    # Two graphs of the same layers may sum in another order.
    np.testing.assert_allclose(trained.whole.predict_on_batch(normalized), through_head, atol=1e-6)
    assert trained.whole.optimizer is trained.head.optimizer
    steps = int(np.ceil(22 / small_recipe.schedule.batch))
    assert int(trained.whole.optimizer.iterations) == small_recipe.schedule.epochs * steps
