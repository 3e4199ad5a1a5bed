"""The adversarial family, against the games whose outcome theory gives."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from specs import images

from genjax import config as configs
from genjax.config import ConfigError
from genjax.methods import gan
from genjax.networks import gan_head
from genjax.nn.adversarial import LOSSES
from genjax.nn.functional import Functional
from genjax.parallel.rules import replicate
from genjax.sampling.conditions import labels
from genjax.training.assemble import assemble

POINT = images((1,), np.float32, name="points")
KEY = jax.random.key(0)


def network(init, apply):
    """A network of one array of parameters: `apply(w, input)`."""

    def call(params, mutable, x, label, key=None, train=False):
        return apply(params["w"], x), mutable

    return Functional(lambda key: ({"w": jnp.float32(init)}, {}), call)


def game(theta=0.0, psi=0.0, **options):
    """The Dirac-GAN (Mescheder et al. 2018, definition 2.1): data at 0, G = theta, D = psi x."""
    return gan.Game(
        network(theta, lambda w, z: jnp.full((len(z), 1), 1.0) * w),
        network(psi, lambda w, x: (w * x[:, 0], None)),
        gan.Options(latent_dim=1, **options),
        POINT,
    )


def field(played, batch):
    """The gradient vector field: (theta, psi) -> minus each player's gradient of its own loss."""
    mutable = {"generator": {}, "discriminator": {}}

    def both(position):
        params = {"generator": {"w": position[0]}, "discriminator": {"w": position[1]}}
        slopes = []
        for name, loss in (
            ("generator", gan.generator_loss),
            ("discriminator", gan.discriminator_loss),
        ):

            def own(w, name=name, loss=loss):
                return loss(played, {**params, name: {"w": w}}, mutable, batch, KEY, 0)[0]

            slopes.append(-jax.grad(own)(params[name]["w"]))
        return jnp.stack(slopes)

    return both


def eigenvalues(at=(0.0, 0.0), **options):
    batch = {"image": jnp.zeros((4, 1))}
    found = np.linalg.eigvals(jax.jacobian(field(game(**options), batch))(jnp.array(at)))
    return np.sort_complex(found)


@pytest.mark.parametrize("loss", ["minimax", "non_saturating", "relativistic"])
def test_dirac_gan_vanilla_has_imaginary_eigenvalues(loss):
    """+- f'(0) i with f'(0) = 1/2 (Mescheder et al. 2018, lemma 2.3): it never converges."""
    np.testing.assert_allclose(eigenvalues(loss=loss), [-0.5j, 0.5j], atol=1e-6)


@pytest.mark.parametrize("loss", ["wasserstein", "hinge"])
def test_dirac_gan_wasserstein_has_imaginary_eigenvalues(loss):
    """f'(0) = 1, so +- i inside the box of the clipping (lemma 2.5)."""
    np.testing.assert_allclose(eigenvalues(loss=loss), [-1j, 1j], atol=1e-6)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("penalty", ["r1", "r2"])
def test_dirac_gan_with_zero_centred_penalties(penalty, gamma):
    """-gamma/2 +- sqrt(gamma^2/4 - f'(0)^2) (Mescheder et al. 2018, theorem 4.1, lemma D.1)."""
    root = np.emath.sqrt(gamma**2 / 4 - 0.25)
    expected = np.sort_complex(np.array([-gamma / 2 - root, -gamma / 2 + root], complex))
    # At gamma = 2 f' the root is double, and an error e moves it by sqrt(e).
    atol = 1e-3 if gamma == 1.0 else 1e-6
    np.testing.assert_allclose(eigenvalues(**{penalty: gamma}), expected, atol=atol)


def trajectory(steps, rate, start=(1.0, 1.0), **options):
    """Simultaneous gradient descent, as (theta, psi) after each step."""
    batch = {"image": jnp.zeros((4, 1))}
    move = field(game(**options), batch)

    def step(position, _):
        position = position + rate * move(position)
        return position, position

    return np.asarray(jax.lax.scan(step, jnp.array(start), None, steps)[1])


def test_dirac_gan_wgan_gp_does_not_converge_and_r1_does():
    """Mescheder et al. 2018, lemma 2.6 and figure 3."""
    gp = trajectory(4000, 0.05, loss="wasserstein", gradient_penalty=0.5)
    assert np.linalg.norm(gp, axis=1).max() < 3  # without the penalty it spirals outwards
    assert np.linalg.norm(gp[-400:], axis=1).min() > 1  # it goes round and round
    assert gp[-400:, 1].min() < -1
    assert gp[-400:, 1].max() > 1
    r1 = trajectory(4000, 0.05, loss="non_saturating", r1=1.0)
    assert np.linalg.norm(r1[-1]) < 1e-6


def test_dirac_gan_wgan_with_clipping_does_not_converge():
    """Mescheder et al. 2018, lemma 2.5; by a whole training step, which clips the critic."""
    config = configs.load("configs/wgan.py:tiny", {"batch_size": 4, "duration": "4000_steps"})
    config.optimizer.update({"name": "sgd", "momentum": 0.0, "learning_rate": 0.05})
    config.schedule.update({"name": "constant", "warmup": ""})
    config.ema.decay = ()
    config.optimizer.networks.discriminator.weight_clip = 1.0
    dirac = game(1.0, 1.0, loss="wasserstein")
    method = gan.from_networks(*dirac[:4], ((r".*", replicate),))
    run = assemble(config, POINT._replace(sizes={"train": 4}), method, devices=jax.devices()[:1])

    @jax.jit
    def play(state):
        def step(state, _):
            state, _ = run.step(state, {"image": jnp.zeros((4, 1))})
            return state, (state.params["generator"]["w"], state.params["discriminator"]["w"])

        return jax.lax.scan(step, state, None, 4000)[1]

    with jax.set_mesh(run.mesh):
        theta, psi = map(np.asarray, play(run.init()))
    assert np.abs(psi).max() == 1  # the box is reached, and kept to
    assert psi[-400:].min() < 0 < psi[-400:].max()
    assert np.hypot(theta, psi)[-400:].min() > 0.1


# ---- two Gaussians -------------------------------------------------------------------------------

MU, COUNT = 1.5, 400_000


def gaussians(critic, **options):
    """Data N(0, 1) against a fixed generator N(mu, 1); returns loss(w) over one large batch."""
    played = gan.Game(
        network(MU, lambda w, z: z + w),
        network(jnp.zeros(2), critic),
        gan.Options(latent_dim=1, **options),
        POINT,
    )
    batch = {"image": jax.random.normal(jax.random.key(7), (COUNT, 1))}

    def loss(w):
        params = {"generator": {"w": jnp.float32(MU)}, "discriminator": {"w": w}}
        mutable = {"generator": {}, "discriminator": {}}
        return gan.discriminator_loss(played, params, mutable, batch, KEY, 0)

    return loss


def test_the_optimal_discriminator_is_p_over_p_plus_q():
    """Goodfellow et al. 2014, proposition 1 and theorem 1: D* and the value -log 4 + 2 JSD."""
    loss = jax.jit(gaussians(lambda w, x: (w[0] + w[1] * x[:, 0], None)))
    w = jnp.zeros(2)
    for _ in range(20):  # Newton: the loss is convex in w
        slope = jax.grad(lambda w: loss(w)[0])(w)
        w = w - jnp.linalg.solve(jax.hessian(lambda w: loss(w)[0])(w), slope)
    # log p/q = mu^2 / 2 - mu x; the estimate's error is about 1/sqrt(COUNT).
    np.testing.assert_allclose(w, [MU**2 / 2, -MU], atol=0.02)
    x = np.linspace(-12, 14, 20001)
    p, q = (np.exp(-((x - m) ** 2) / 2) / np.sqrt(2 * np.pi) for m in (0.0, MU))
    middle = (p + q) / 2
    divergence = 0.5 * np.trapezoid(p * np.log(p / middle) + q * np.log(q / middle), x)
    value = -float(loss(jnp.array([MU**2 / 2, -MU]))[0])
    assert value == pytest.approx(-np.log(4) + 2 * divergence, abs=4e-3)


@pytest.mark.parametrize("weight", [1.0, 10.0, 100.0])
def test_the_wgan_gp_critics_gap_approaches_the_distance_of_the_means(weight):
    """max_w mu |w| - lambda (|w| - 1)^2 has |w| = 1 + mu / (2 lambda), and so the gap mu |w|.

    As lambda grows it becomes W1(N(0, 1), N(mu, 1)) = |mu|, which no 1-Lipschitz critic passes.
    """
    critic = gaussians(
        lambda w, x: (w[1] * x[:, 0], None), loss="wasserstein", gradient_penalty=weight
    )
    slope = jax.grad(lambda w: critic(jnp.stack([0.0, w]))[0])
    # The loss is a parabola in w < 0: two slopes give its bottom.
    a, b = float(slope(-1.0)), float(slope(-2.0))
    best = -1.0 - a / (a - b)
    assert best == pytest.approx(-(1 + MU / (2 * weight)), rel=0.01)
    free = gaussians(lambda w, x: (w[1] * x[:, 0], None), loss="wasserstein")
    gap = -float(free(jnp.array([0.0, best]))[0])
    assert gap == pytest.approx(MU * (1 + MU / (2 * weight)), rel=0.02)


# ---- penalties -----------------------------------------------------------------------------------


def test_alpha_of_the_gradient_penalty_is_one_number_an_example():
    real, fake = jnp.zeros((6, 4, 4, 3)), jnp.ones((6, 4, 4, 3))
    between = np.asarray(gan.interpolate(real, fake, KEY))
    alpha = between[:, 0, 0, 0]
    np.testing.assert_array_equal(
        between, np.broadcast_to(alpha[:, None, None, None], between.shape)
    )
    assert len(set(alpha.tolist())) == 6
    assert ((alpha >= 0) & (alpha < 1)).all()
    packed = np.asarray(gan.interpolate(real, fake, KEY, packing=2))[:, 0, 0, 0]
    np.testing.assert_array_equal(packed[0::2], packed[1::2])
    assert len(set(packed.tolist())) == 3


@pytest.mark.parametrize(
    "options",
    [{"gradient_penalty": 10.0, "loss": "wasserstein"}, {"r1": 3.0}, {"r2": 3.0}],
    ids=str,
)
def test_the_double_gradient_of_penalties_against_finite_differences(options):
    with jax.enable_x64(True):
        weights = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7)))

        def critic(w, x):
            return jnp.tanh(x @ w[:, :1].T * w[:, 1]).sum(-1) + jnp.cos(x[:, 0] * w[0, 2]), None

        played = gan.Game(
            network(1.0, lambda w, z: z * w + 1),
            network(0.0, critic),
            gan.Options(latent_dim=1, **options),
            POINT,
        )
        batch = {"image": jnp.asarray(np.random.default_rng(1).normal(size=(8, 1)))}

        def loss(w):
            params = {"generator": {"w": jnp.float64(1.3)}, "discriminator": {"w": w}}
            mutable = {"generator": {}, "discriminator": {}}
            return gan.discriminator_loss(played, params, mutable, batch, KEY, 0)[0]

        found = jax.grad(loss)(weights)
        for i, j in [(0, 0), (1, 1), (4, 0), (0, 2)]:
            h = jnp.zeros_like(weights).at[i, j].set(1e-5)
            expected = (loss(weights + h) - loss(weights - h)) / 2e-5
            np.testing.assert_allclose(found[i, j], expected, rtol=1e-4, atol=1e-8)


def test_penalties_of_a_flat_discriminator_have_finite_gradients():
    flat = jnp.zeros((3, 5))
    value, slope = jax.value_and_grad(gan.unit_norm_penalty)(flat)
    assert float(value) == 1.0
    np.testing.assert_array_equal(slope, 0.0)
    assert float(gan.zero_penalty(jnp.full((2, 4), 2.0))) == 0.5 * 16


# ---- losses, options -----------------------------------------------------------------------------


def test_losses_against_their_formulas():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 9)) * 3

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    log = np.log
    cross_entropy = -(log(sigmoid(real)) + log(1 - sigmoid(fake))).mean()
    expected = {
        "minimax": (cross_entropy, log(1 - sigmoid(fake)).mean()),
        "non_saturating": (cross_entropy, -log(sigmoid(fake)).mean()),
        "least_squares": (
            ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2,
            ((fake - 1) ** 2).mean() / 2,
        ),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
        "hinge": (
            np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
            -fake.mean(),
        ),
        "relativistic": (
            -log(sigmoid(real - fake)).mean(),
            -log(sigmoid(fake - real)).mean(),
        ),
    }
    assert expected.keys() == gan.LOSSES.keys()
    for name, (discriminator, generator) in expected.items():
        found = gan.LOSSES[name]
        for peer, value in ((discriminator, found.discriminator), (generator, found.generator)):
            assert float(value(real, fake)) == pytest.approx(peer, rel=1e-5), name


def test_auxiliary_loss_is_the_cross_entropy_of_the_labels():
    logits, label = jnp.array([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]), jnp.array([0, 1])
    peer = optax.losses.safe_softmax_cross_entropy(logits, jax.nn.one_hot(label, 3)).mean()
    assert float(gan._class_loss(logits, label)) == pytest.approx(float(peer), rel=1e-6)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"loss": "hing"}, r"gan\.loss='hing'.*Nearest: hinge"),
        ({"conditioning": "projection"}, r"points has no labels"),
        ({"augment": "adda"}, r"Nearest: ada"),
        ({"augment": "ada", "augment_policy": ("cutout",)}, r"of 'ada'='cutout'.*blit, geometry"),
        ({"augment_policy": ("color",)}, r"there is no augmentation"),
        ({"conditioning": "project"}, r"'project'.*Nearest: projection"),
        ({"packing": 0}, r"packing=0: expected at least 1"),
        ({"packing": 3}, r"a multiple of gan\.packing=3"),
        ({"critic_steps": 0}, r"critic_steps=0: expected at least 1"),
        ({"r1": -1.0}, r"r1=-1\.0: expected at least 0"),
        ({"augment": "ada", "loss": "wasserstein"}, r"the sign of the discriminator's logits"),
        ({"los": "hinge"}, r"config\.gan='los'.*Nearest: loss"),
    ],
)
def test_options_that_are_refused(keys, says):
    config = configs.base()
    with config.unlocked():
        config.gan = keys
    with pytest.raises(ConfigError, match=says):
        gan.options_from_config(config, POINT)


@pytest.mark.parametrize("conditioning", ["projection", "auxiliary"])
def test_a_pack_has_one_output_and_so_no_labels_in_its_head(conditioning):
    config = configs.base()
    with config.unlocked():
        config.gan = {"packing": 2, "conditioning": conditioning}
    with pytest.raises(ConfigError, match=r"packing=2 with gan\.conditioning"):
        gan.options_from_config(config, images((1,), np.float32, classes=3))


def test_the_discriminator_sees_the_parts_of_the_policy_alone():
    """A bright pixel in the middle keeps its sum when it moves, not under all of DiffAugment."""
    x = jnp.zeros((4, 16, 16, 1)).at[:, 8, 8].set(1.0)
    total = network(1.0, lambda w, x: (w * x.sum((1, 2, 3)), None))

    def seen(**options):
        played = game(augment="diffaugment", **options)._replace(discriminator=total)
        state = {"discriminator": {}}
        return played.judge({"discriminator": {"w": 1.0}}, state, x, None, KEY, train=True)[0]

    np.testing.assert_allclose(seen(augment_policy=("translation",)), 1.0, atol=1e-6)
    assert np.abs(seen() - 1.0).max() > 1


def test_labels_for_a_generator_that_knows_none():
    with pytest.raises(ConfigError, match=r"label: the model has no such.*gan\.conditioning"):
        gan.sample(game(), {}, {}, KEY, 2, {"label": jnp.array([0, 1])})


def test_rules_cover_the_state_of_the_augmentation():
    method = gan.from_networks(
        game().generator, game().discriminator, gan.Options(augment="ada"), POINT, ()
    )
    assert method.rules[0][1] is replicate
    _, mutable = method.init(KEY, {})
    assert set(mutable) == {"generator", "discriminator", "augment"}


def test_lazy_penalties_are_as_strong_as_those_in_every_update():
    """The discriminator's gradients over one cycle add up to the same."""
    batch, mutable = {"image": jnp.ones((4, 1))}, {"generator": {}, "discriminator": {}}
    params = {"generator": {"w": jnp.float32(0.5)}, "discriminator": {"w": jnp.float32(0.7)}}

    def cycle(every, critic_steps=3, steps=4):
        options = gan.Options(latent_dim=1, r1=2.0, penalty_every=every, critic_steps=critic_steps)
        played = game(**{k: v for k, v in options._asdict().items() if k != "latent_dim"})
        method = gan.from_networks(played.generator, played.discriminator, options, POINT, ())
        total = 0.0
        for phase in method.phases[:-1]:

            def loss(w, phase=phase):
                return phase.loss({**params, "discriminator": {"w": w}}, mutable, batch, KEY, 0)[0]

            total += phase.repeat * steps / phase.every * jax.grad(loss)(jnp.float32(0.7))
        return float(total)

    assert cycle(4) == pytest.approx(cycle(1), rel=1e-5)


@pytest.mark.parametrize(
    ("keys", "dtype", "says"),
    [
        ({"gan.r1": 1.0}, np.uint8, r"set model\.discriminator\.norm to 'layer' or 'none'"),
        ({"dataset.dequantize": True}, np.float32, r"dequantize=False"),
        ({"model.network": "dcgn"}, np.uint8, r"Nearest: dcgan"),
    ],
)
def test_builds_that_are_refused(keys, dtype, says):
    config = configs.load("configs/dcgan.py:tiny", keys)
    with pytest.raises(ConfigError, match=says):
        gan.build(config, images((16, 16, 1), dtype))


def test_a_wrong_key_of_a_network_is_named():
    config = configs.load("configs/dcgan.py:tiny")
    with config.unlocked():
        config.model.generator.chanels = 3
    with pytest.raises(ConfigError, match=r"model\.generator='chanels'.*Nearest: channels"):
        gan.build(config, images((8, 8, 1)))


def test_unlabelled_draws_take_each_class_equally_often():
    spec = images((8, 8, 1), classes=100)
    drawn = [labels(spec, True, 10, {}, jax.random.key(i)) for i in range(400)]
    counts = np.bincount(np.concatenate(drawn), minlength=100)
    assert counts.min() > 15
    assert counts.sum() == 4000
    np.testing.assert_array_equal(np.diff(np.asarray(drawn[0])) % 100, 1)


# ---- everything with everything ------------------------------------------------------------------

PENALTIES = ({}, {"gan.gradient_penalty": 10.0}, {"gan.r1": 1.0, "gan.penalty_every": 4})
NETWORKS = {"gan": {}, "dcgan": {"model.discriminator.norm": "none"}, "r3gan": {}}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_penalty_network_labels_and_augmentation_are_chosen_freely(loss, network):
    """Each loss with each network, and the rest in turn; traced, and not run."""
    place = list(LOSSES).index(loss) + len(LOSSES) * list(NETWORKS).index(network)
    augmentations = ("none", "diffaugment", "ada" if LOSSES[loss].threshold is not None else "none")
    keys = {
        "gan.loss": loss,
        "gan.gradient_penalty": 0.0,
        "gan.r1": 0.0,
        "gan.r2": 0.0,
        "gan.penalty_every": 1,
        "gan.conditioning": gan_head.CONDITIONING[place % 4],
        "gan.augment": augmentations[place % 3],
        "gan.critic_steps": 1 + place % 2,
        **NETWORKS[network],
        **PENALTIES[(place // 3) % 3],
    }
    config = configs.load(f"configs/{network}.py:tiny", keys)
    spec = images((8, 8, 1), classes=10, train=64)
    method = gan.build(config, spec)
    batch = {name: jax.ShapeDtypeStruct((8, *f.shape), f.dtype) for name, f in spec.fields.items()}
    params, mutable = jax.eval_shape(method.init, KEY, batch)
    assert len(method.phases) == 2 + (config.gan.penalty_every > 1)
    for phase in method.phases:
        slopes = jax.eval_shape(jax.grad(phase.loss, has_aux=True), params, mutable, batch, KEY, 0)
        chex.assert_trees_all_equal_shapes_and_dtypes(slopes[0], params)
