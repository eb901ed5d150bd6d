"""What the catalogue holds: the rooms, and one entry for each system; `retinue.catalog` searches them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ROOMS: Mapping[str, tuple[str, str]] = {  # room -> what its user has, what they want
    "models": ("labelled images", "a network that classifies them"),
    "train": ("labelled images, and no wish to back-propagate through everything", "another way to train"),
    "pretrain": ("many images and few labels, or none", "a backbone that already knows images"),
    "distill": ("a strong teacher, or several", "a small network almost as good"),
    "search": ("no idea which network suits my data", "the architecture found for me"),
    "compress": ("a trained network that is too big or too slow", "a smaller one that is as accurate"),
    "grow": ("one trained network", "networks of other sizes without training each from nothing"),
    "continual": ("new classes or tasks that keep arriving", "to learn them without forgetting, or retraining on everything"),
    "explain": ("a trained classifier", "to know why it said that, and whether to trust it"),
    "audit": ("data that I do not trust", "to know how hard, how odd or how synthetic it is"),
    "generate": ("images, too few of them", "new ones: sampled, guided, personalised, or made to forget"),
    "scenes": ("pictures with many things in them, or moving bodies", "masks, boxes, actions"),
    "theory": ("a question about what deep networks can do", "an answer that can be computed"),
}


@dataclass(frozen=True)
class System:
    """One paper of the catalogue.

    Attributes:
        slug: its short name on the command line.
        title: of the paper.
        authors: the first ones.
        year: of the first publication.
        arxiv: identifier there.
        room: the package of retinue in which it lives.
        use: one line, in the words of somebody who has the problem.
        parts: the public things that it brings, by dotted name.
        module: its file, below `retinue`.
        state: "ready" once parts, recipes, tests and a recorded claim exist; "planned" before.
        exceptions: laws of `tests/test_every_system.py` that it does not obey, each with the reason.
    """

    slug: str
    title: str
    authors: str
    year: int
    arxiv: str
    room: str
    use: str
    parts: tuple[str, ...]
    module: str
    state: Literal["planned", "ready"] = "planned"
    exceptions: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where the paper can be read."""
        return f"https://arxiv.org/abs/{self.arxiv}"


# fmt: off
SYSTEMS: tuple[System, ...] = (
    System(
        slug="inception-v4", room="models", module="models/inception_v4.py", year=2016, arxiv="1602.07261", state="ready",
        authors="Christian Szegedy et al.", parts=(
            "retinue.models.inception_v4", "retinue.models.inception_resnet_v1", "retinue.models.inception_resnet_v2",
            "retinue.models.multi_crop", "retinue.models.ensemble_predict",
        ),
        title="Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
        use="I need a strong image classifier, and to know whether residual connections make it train faster.",
    ),
    System(
        slug="inception-next", room="models", module="models/inception_next.py", year=2023, arxiv="2303.16900", state="ready",
        authors="Weihao Yu et al.", parts=(
            "retinue.models.inception_next", "retinue.models.InceptionDWConv2d", "retinue.models.MetaNeXtBlock",
        ),
        title="InceptionNeXt: When Inception Meets ConvNeXt",
        use="I want ConvNeXt accuracy from a convolutional network that trains faster on my GPU.",
    ),
    System(
        slug="iformer", room="models", module="models/iformer.py", year=2022, arxiv="2205.12956", state="ready",
        authors="Chenyang Si et al.", parts=(
            "retinue.models.iformer", "retinue.models.InceptionMixer", "retinue.models.InceptionTransformer",
        ),
        title="Inception Transformer",
        use="I want a transformer backbone that keeps fine detail (high frequencies) as well as global shape.",
    ),
    System(
        slug="ibn-net", room="models", module="models/ibn_net.py", year=2018, arxiv="1807.09441", state="ready",
        authors="Xingang Pan et al.", parts=(
            "retinue.models.resnet_ibn", "retinue.models.densenet_ibn", "retinue.models.convert_to_ibn", "retinue.models.IBN",
            "retinue.models.appearance_shifts", "retinue.models.evaluate_shifts", "retinue.models.feature_divergence",
        ),
        title="Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net",
        use="My network must work on images that look different (night, other camera, other style) without target data.",
    ),
    System(
        slug="simplenet", room="models", module="models/simplenet.py", year=2016, arxiv="1608.06037", state="ready",
        authors="Seyyed Hossein Hasanpour et al.", parts=("retinue.models.simplenet",),
        title="Lets keep it simple, Using simple architectures to outperform deeper and more complex architectures",
        use="I want a small, fast, plain network for tiny images (28 to 32 px) or an embedded device.",
    ),
    System(
        slug="resnet-rs", room="models", module="models/resnet_rs.py", year=2021, arxiv="2103.07579", state="ready",
        authors="Irwan Bello et al.", parts=(
            "retinue.models.resnet_rs", "retinue.models.resnet3d_rs", "retinue.models.scaling_advisor", "retinue.models.RSRecipe",
            "retinue.models.pseudo_label", "retinue.train.SelfTraining",
        ),
        title="Revisiting ResNets: Improved Training and Scaling Strategies",
        use="I want the most out of a plain ResNet: a better training recipe, and advice on growing depth, width or resolution.",
    ),
    System(
        slug="nasnet", room="search", module="search/nasnet.py", year=2017, arxiv="1707.07012",
        authors="Barret Zoph et al.", parts=(
            "retinue.models.nasnet", "retinue.models.Genotype", "retinue.models.ScheduledDropPath", "retinue.search.PPOSearch",
            "retinue.search.RandomSearch",
        ),
        title="Learning Transferable Architectures for Scalable Image Recognition",
        use="Search a cell on a small data set by reinforcement learning, then stack it into a large network for mine.",
    ),
    System(
        slug="noprop", room="train", module="train/noprop.py", year=2025, arxiv="2503.24322", state="ready",
        authors="Qinyu Li, Yee Whye Teh, Razvan Pascanu",
        title="NoProp: Training Neural Networks without Full Back-propagation or Full Forward-propagation",
        use="I want to train blocks one by one, without back-propagation through the network, in the memory of a single block.",
        parts=(
            "retinue.train.NoProp", "retinue.train.NoPropDT", "retinue.train.NoPropCT", "retinue.train.NoPropFM",
        ),
        exceptions={"same keys": "what is trained is a network built around the model: blocks, embedding and output layer"},
    ),
    System(
        slug="rotnet", room="pretrain", module="pretrain/rotnet.py", year=2018, arxiv="1803.07728", state="ready",
        authors="Spyros Gidaris, Praveer Singh, Nikos Komodakis", parts=(
            "retinue.pretrain.RotNet", "retinue.pretrain.rotate_batch", "retinue.train.probe", "retinue.models.LayerProbe",
        ),
        title="Unsupervised Representation Learning by Predicting Image Rotations",
        use="I have many unlabelled images and few labels: pre-train any backbone by guessing how far each image was turned.",
    ),
    System(
        slug="simclr-v2", room="pretrain", module="pretrain/simclr_v2.py", year=2020, arxiv="2006.10029", state="ready",
        authors="Ting Chen et al.", parts=(
            "retinue.pretrain.SimCLRv2", "retinue.pretrain.semi_supervised", "retinue.models.simclr_resnet",
            "retinue.models.ProjectionHead", "retinue.pretrain.FineTuning", "retinue.pretrain.Distillation",
        ),
        title="Big Self-Supervised Models are Strong Semi-Supervised Learners",
        use="I have many images and few labels: pre-train contrastively, fine-tune on the few labels, then distil into a small network.",
    ),
    System(
        slug="cae", room="pretrain", module="pretrain/cae.py", year=2022, arxiv="2202.03026", state="ready",
        authors="Xiaokang Chen et al.", parts=(
            "retinue.pretrain.CAE", "retinue.pretrain.FineTune", "retinue.pretrain.BlockMask", "retinue.models.cae_vit",
            "retinue.models.for_fine_tuning", "retinue.train.attentive_probe",
        ),
        exceptions=dict.fromkeys(
            ("finite loss", "own parameters", "resume", "same seed", "same keys"),
            "it trains vision transformers alone and refuses the three other kinds; its own tests hold these laws for two of those",
        ),
        title="Context Autoencoder for Self-Supervised Representation Learning",
        use="I have unlabelled images and want to pre-train a vision transformer by predicting masked patches.",
    ),
    System(
        slug="scatsimclr", room="pretrain", module="pretrain/scatsimclr.py", year=2021, arxiv="2108.13939", state="ready",
        authors="Vitaliy Kinakh, Olga Taran, Svyatoslav Voloshynovskiy", parts=("retinue.pretrain.ScatSimCLR", "retinue.models.scatsimclr"),
        title="ScatSimCLR: self-supervised contrastive learning with pretext task regularization for small-scale datasets",
        use="My unlabelled image set is small: pre-train with a fixed scattering transform and fewer weights to learn.",
    ),
    System(
        slug="fractal-pretraining", room="pretrain", module="pretrain/fractal.py", year=2021, arxiv="2110.03091", state="ready",
        authors="Connor Anderson, Ryan Farrell", parts=(
            "retinue.pretrain.FractalDataset", "retinue.pretrain.fractals", "retinue.pretrain.MultiInstance", "retinue.pretrain.FastHead",
            "retinue.pretrain.SimSiam",
        ),
        title="Improving Fractal Pre-training",
        use="I have no images to pre-train on, or may not use them (privacy, licence): pre-train on generated fractals.",
    ),
    System(
        slug="clip", room="pretrain", module="pretrain/clip.py", year=2021, arxiv="2103.00020",
        authors="Alec Radford et al.", parts=("retinue.pretrain.CLIP",),
        title="Learning Transferable Visual Models From Natural Language Supervision",
        use="I want to classify images by typing the class names (zero-shot), or train on images with captions.",
    ),
    System(
        slug="imaginet", room="audit", module="audit/imaginet.py", year=2024, arxiv="2407.20020", state="ready",
        authors="Delyan Boychev, Radostin Cholakov", parts=(
            "retinue.pretrain.SelfCon", "retinue.audit.train_detector", "retinue.audit.two_track_report",
            "retinue.audit.SocialNetworkPerturbation",
        ),
        title="ImagiNet: A Multi-Content Dataset for Generalizable Synthetic Image Detection via Contrastive Learning",
        use="Is this picture real or AI-generated (fake, synthetic), and by which generator, even after recompression?",
    ),
    System(
        slug="meal-v2", room="distill", module="distill/meal_v2.py", year=2020, arxiv="2009.08453", state="ready",
        authors="Zhiqiang Shen, Marios Savvides", parts=(
            "retinue.distill.MEALv2", "retinue.distill.EnsembleTeacher", "retinue.distill.distill_ensemble", "retinue.distill.StoredMEALv2",
        ),
        title="MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks",
        use="I have a trained small network and some stronger teachers: make it better without changing it and without labels.",
    ),
    System(
        slug="dataset-reinforcement", room="distill", module="distill/dataset_reinforcement.py", year=2023, arxiv="2303.08983",
        state="ready", authors="Fartash Faghri et al.", parts=(
            "retinue.distill.ReinforcementBuilder", "retinue.distill.ReinforcedDataset", "retinue.distill.Reinforced",
            "retinue.distill.ReplayableTransform", "retinue.distill.reinforced_training",
        ),
        title="Reinforce Data, Multiply Impact: Improved Model Accuracy and Robustness with Dataset Reinforcement",
        use="I train many models on one data set: pay for strong teachers once, store their answers, train each at ordinary cost.",
    ),
    System(
        slug="guidance", room="distill", module="distill/guidance.py", year=2024, arxiv="2410.20035", state="ready",
        authors="Vighnesh Subramaniam et al.", parts=(
            "retinue.distill.Guidance", "retinue.distill.map_layers", "retinue.models.deep_fcn", "retinue.models.plain_resnet50",
        ),
        title="Training the Untrainable: Introducing Inductive Bias via Representational Alignment",
        use="My architecture trains badly (very deep, no skips, fully connected): let another network guide its layers.",
    ),
    System(
        slug="eas", room="search", module="search/eas.py", year=2017, arxiv="1707.04873",
        authors="Han Cai et al.", parts=("retinue.search.EAS", "retinue.search.widen", "retinue.search.deepen"),
        title="Efficient Architecture Search by Network Transformation",
        use="I have a trained network and want a bigger, better one: widen and deepen it without losing what it knows.",
    ),
    System(
        slug="bossnas", room="search", module="search/bossnas.py", year=2021, arxiv="2103.12424",
        authors="Changlin Li et al.", parts=("retinue.search.BossNAS",),
        title="BossNAS: Exploring Hybrid CNN-transformers with Block-wisely Self-supervised Neural Architecture Search",
        use="Rank many candidate networks (CNN, transformer, mixed) without training each one and without labels.",
    ),
    System(
        slug="deps", room="search", module="search/deps.py", year=2024, arxiv="2407.06167",
        authors="Aditya Annavajjala, Alind Khare et al.", parts=("retinue.search.ElasticMobileNetV3", "retinue.search.DelayedShrinking"),
        title="DepS: Delayed epsilon-Shrinking for Faster Once-For-All Training",
        use="I need networks of many sizes for phones, edge and servers from one training, each under a latency limit.",
    ),
    System(
        slug="gennape", room="search", module="search/gennape.py", year=2022, arxiv="2211.17226",
        authors="Keith G. Mills et al.", parts=("retinue.search.GENNAPE",),
        title="GENNAPE: Towards Generalized Neural Architecture Performance Estimators",
        use="Predict how well networks will do before training them, from a few trained ones of another family.",
    ),
    System(
        slug="lottery-ticket", room="compress", module="compress/lottery_ticket.py", year=2019, arxiv="1903.01611", state="ready",
        authors="Jonathan Frankle et al.", parts=(
            "retinue.compress.lottery_ticket", "retinue.compress.IMP", "retinue.compress.magnitude_mask", "retinue.compress.error_barrier",
            "retinue.compress.save_sparse",
        ),
        title="Stabilizing the Lottery Ticket Hypothesis",
        use="My network is too big: prune it to a sparse one that still trains to full accuracy.",
    ),
    System(
        slug="n2n", room="compress", module="compress/n2n.py", year=2017, arxiv="1709.06030", state="ready",
        authors="Anubhav Ashok et al.", parts=("retinue.compress.N2N", "retinue.compress.n2n_search"),
        title="N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning",
        use="My trained network is too big: learn which layers to remove and how far to shrink the rest.",
    ),
    System(
        slug="mixture-growth", room="grow", module="grow/mixture_growth.py", year=2023, arxiv="2311.04251", state="ready",
        authors="Chau Pham et al.", parts=(
            "retinue.grow.MixtureGrowth", "retinue.grow.MixtureGrowthNet", "retinue.grow.convert", "retinue.grow.grow",
            "retinue.grow.materialise", "retinue.grow.GrowthPlan", "retinue.grow.train_mixture_growth",
        ),
        title="MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters",
        use="I have a trained narrow network and want the full-width one without starting again.",
    ),
    System(
        slug="learngene-pool", room="grow", module="grow/learngene_pool.py", year=2023, arxiv="2312.05743", state="ready",
        authors="Boyu Shi et al.", parts=(
            "retinue.grow.LearngenePool", "retinue.grow.LearngeneDistillation", "retinue.grow.PoolTraining",
            "retinue.grow.train_learngene_pool",
        ),
        title="Building Variable-sized Models via Learngene Pool",
        use="I need vision transformers of many sizes: stitch them from a pool of distilled blocks of one big model.",
    ),
    System(
        slug="sws", room="grow", module="grow/sws.py", year=2024, arxiv="2404.16897", state="ready",
        authors="Shi-Yu Xia et al.", parts=(
            "retinue.grow.StageSharedViT", "retinue.grow.SoftDistillation", "retinue.grow.share_stages",
            "retinue.grow.initialise_descendant", "retinue.grow.train_sws",
        ),
        title="Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models",
        use="I need transformers of several depths: train one compact network and initialise any depth from its layers.",
    ),
    System(
        slug="hypernetworks", room="grow", module="grow/hypernetworks.py", year=2023, arxiv="2306.06955", state="ready",
        authors="Vinod Kumar Chauhan et al.", parts=(
            "retinue.grow.HyperNetwork", "retinue.grow.HyperTraining", "retinue.grow.OutputRegulariser", "retinue.grow.learn_tasks",
        ),
        exceptions={"same keys": "what is trained is a network built around the model: hypernetwork, codes and placeholders"},
        title="A Brief Review of Hypernetworks in Deep Learning",
        use="Let one network generate the weights of another: many tasks in one budget, ensembles with uncertainty, smaller files.",
    ),
    System(
        slug="exssnet", room="continual", module="continual/exssnet.py", year=2022, arxiv="2210.10209",
        authors="Prateek Yadav, Mohit Bansal", parts=("retinue.continual.ExSSNeT",),
        title="Exclusive Supermask Subnetwork Training for Continual Learning",
        use="Learn a sequence of tasks in one network of fixed size without forgetting any: a mask for each task.",
    ),
    System(
        slug="lifelong", room="continual", module="continual/lifelong.py", year=2021, arxiv="2105.00157",
        authors="Charles X. Ling, Tanner Bohn", parts=("retinue.continual.LifelongLearner",),
        title="A Deep Learning Framework for Lifelong Machine Learning",
        use="A new class or task arrived: learn it, keep the old ones, or forget on purpose, by setting how stiff each weight is.",
    ),
    System(
        slug="federated-reconnaissance", room="continual", module="continual/federated_reconnaissance.py", year=2021, arxiv="2109.00150",
        authors="Sean M. Hendryx et al.", parts=("retinue.continual.PrototypicalNetwork", "retinue.continual.FedRecon"),
        title="Federated Reconnaissance: Efficient, Distributed, Class-Incremental Learning",
        use="Several devices each see new classes and few examples: share one cheap message instead of images (federated, few-shot).",
    ),
    System(
        slug="grad-cam", room="explain", module="explain/grad_cam.py", year=2023, arxiv="2302.14354", state="ready",
        authors="Mahdi Bahrami, Amir Albadvi", parts=(
            "retinue.explain.GradCAM", "retinue.explain.heat_maps", "retinue.explain.deletion_auc", "retinue.explain.insertion_auc",
            "retinue.explain.pointing_game", "retinue.explain.average_drop", "retinue.explain.sanity_check", "retinue.train.transfer",
            "retinue.train.compare_backbones",
        ),
        title="Deep Learning for Identifying Iran's Cultural Heritage Buildings in "
        "Need of Conservation Using Image Classification and Grad-CAM",
        use="Why did it say that? A heat map of where the network looked, with a measure of whether to trust it; transfer learning.",
    ),
    System(
        slug="prototype-dl", room="explain", module="explain/prototype_dl.py", year=2017, arxiv="1710.04806", state="ready",
        authors="Oscar Li et al.", parts=(
            "retinue.explain.PrototypeClassifier", "retinue.explain.PrototypeLoss", "retinue.models.prototype_dl",
        ),
        exceptions={"same keys": "what is trained is a network built around the model: encoder, prototypes and decoder"},
        title="Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its Predictions",
        use="I want a classifier that explains itself: this image is close to these prototypes, which can be looked at.",
    ),
    System(
        slug="prob-psenn", room="explain", module="explain/prob_psenn.py", year=2024, arxiv="2403.13740", state="ready",
        authors="Jon Vadillo et al.", parts=(
            "retinue.explain.ProbPSENN", "retinue.explain.ProbPSENNLoss", "retinue.explain.train_prob_psenn", "retinue.models.prob_psenn",
        ),
        title="Uncertainty-Aware Explanations Through Probabilistic Self-Explainable Neural Networks",
        use="I want to know how sure the network is of its prediction and of its explanation (uncertainty).",
    ),
    System(
        slug="st-protopnet", room="explain", module="explain/st_protopnet.py", year=2023, arxiv="2301.04011", state="ready",
        authors="Chong Wang et al.", parts=(
            "retinue.explain.ProtoPNet", "retinue.explain.STProtoPNet", "retinue.explain.PartPrototypes", "retinue.explain.fit_prototypes",
            "retinue.explain.push", "retinue.explain.prune", "retinue.explain.localisation",
        ),
        title="Learning Support and Trivial Prototypes for Interpretable Image Classification",
        use="I want to see which part of the image looks like which training patch.",
    ),
    System(
        slug="fooling-images", room="explain", module="explain/fooling.py", year=2014, arxiv="1412.1897", state="ready",
        authors="Anh Nguyen, Jason Yosinski, Jeff Clune", parts=(
            "retinue.explain.fool", "retinue.explain.MapElites", "retinue.explain.CPPN", "retinue.explain.retrain_with_fooling",
        ),
        title="Deep Neural Networks are Easily Fooled: High Confidence Predictions for Unrecognizable Images",
        use="Stress-test my classifier: find images that look like nothing but get near-certain confidence (adversarial robustness).",
    ),
    System(
        slug="relative-representations", room="explain", module="explain/relative.py", year=2022, arxiv="2209.15430", state="ready",
        authors="Luca Moschella et al.", parts=(
            "retinue.explain.RelativeProjection", "retinue.explain.Relative", "retinue.explain.stitch", "retinue.explain.select_anchors",
        ),
        exceptions={"same keys": "what is trained is a network built around the model: encoder, anchors and head"},
        title="Relative representations enable zero-shot latent space communication",
        use="Compare two networks' feature spaces, or stitch the head of one on the other, without training.",
    ),
    System(
        slug="dataset-properties", room="audit", module="audit/dataset_properties.py", year=2024, arxiv="2401.08865", state="ready",
        authors="Nicholas Konz, Maciej A. Mazurowski", parts=(
            "retinue.audit.intrinsic_dimension", "retinue.audit.label_sharpness", "retinue.audit.dataset_report",
            "retinue.audit.learning_curve", "retinue.audit.compare",
        ),
        title="The Effect of Intrinsic Dataset Properties on Generalization: "
        "Unraveling Learning Differences Between Natural and Medical Images",
        use="Is this data any good? Intrinsic dimension and label sharpness before training, and how much more data would help.",
    ),
    System(
        slug="simplenet-ad", room="audit", module="audit/simplenet_ad.py", year=2023, arxiv="2303.15140",
        authors="Zhikang Liu et al.", parts=("retinue.audit.SimpleNet",),
        title="SimpleNet: A Simple Network for Image Anomaly Detection and Localization",
        use="I have good images only and no labelled defects: score and locate anomalies, such as factory faults.",
    ),
    System(
        slug="vit-vqgan", room="generate", module="generate/vit_vqgan.py", year=2021, arxiv="2110.04627",
        authors="Jiahui Yu et al.", parts=("retinue.generate.ViTVQGAN", "retinue.generate.VIM"),
        title="Vector-quantized Image Modeling with Improved VQGAN",
        use="Turn images into discrete codes (tokens) and back, and sample new images from a transformer over the codes.",
    ),
    System(
        slug="ppgn", room="generate", module="generate/ppgn.py", year=2016, arxiv="1612.00005",
        authors="Anh Nguyen et al.", parts=("retinue.generate.PPGNSampler",),
        title="Plug & Play Generative Networks: Conditional Iterative Generation of Images in Latent Space",
        use="Turn my classifier into an image sampler: show me what makes this class or neuron fire, or fill a hole.",
    ),
    System(
        slug="sims", room="generate", module="generate/sims.py", year=2024, arxiv="2408.16333",
        authors="Sina Alemohammad et al.", parts=("retinue.generate.SIMS",),
        title="Self-Improving Diffusion Models with Synthetic Data",
        use="Make my diffusion model better with its own samples, and see whether training on synthetic data collapses it.",
    ),
    System(
        slug="sfd", room="generate", module="generate/sfd.py", year=2024, arxiv="2409.11219",
        authors="Tianqi Chen, Shujian Zhang, Mingyuan Zhou", parts=("retinue.generate.SFD",),
        title="Score Forgetting Distillation: A Swift, Data-Free Method for Machine Unlearning in Diffusion Models",
        use="Make a diffusion model forget a class or concept (unlearning) without the real images, and sample in one step.",
    ),
    System(
        slug="core", room="generate", module="generate/core_personalization.py", year=2024, arxiv="2408.15914",
        authors="Feize Wu et al.", parts=("retinue.generate.CoRe",),
        title="CoRe: Context-Regularized Text Embedding Learning for Text-to-Image Personalization",
        use="I have a handful of pictures of one object and want a text-to-image model to draw it in new scenes.",
    ),
    System(
        slug="gif", room="generate", module="generate/gif.py", year=2022, arxiv="2211.13976",
        authors="Yifan Zhang, Daquan Zhou et al.", parts=("retinue.generate.GuidedImagination",),
        title="Expanding Small-Scale Datasets with Guided Imagination",
        use="My labelled data set is too small: expand it with generated images that keep their class and add information.",
    ),
    System(
        slug="simple-segmentation", room="scenes", module="scenes/ffnet.py", year=2022, arxiv="2206.08236",
        authors="Dushyant Mehta et al.", parts=("retinue.scenes.ffnet",),
        title="Simple and Efficient Architectures for Semantic Segmentation",
        use="I need a label for each pixel (semantic segmentation) from a plain network that deploys anywhere.",
    ),
    System(
        slug="ssd", room="scenes", module="scenes/ssd.py", year=2015, arxiv="1512.02325",
        authors="Wei Liu et al.", parts=("retinue.scenes.SSD", "retinue.scenes.MultiBoxLoss"),
        title="SSD: Single Shot MultiBox Detector",
        use="Find objects in images: boxes and classes in real time (object detection).",
    ),
    System(
        slug="catnet", room="scenes", module="scenes/catnet.py", year=2021, arxiv="2111.11057",
        authors="Ye Liu et al.", parts=("retinue.scenes.DenseFPN", "retinue.scenes.SCP", "retinue.scenes.cat_mask_rcnn"),
        title="Learning to Aggregate Multi-Scale Context for Instance Segmentation in Remote Sensing Images",
        use="Find and outline small, dense, similar objects in aerial or medical images (instance segmentation).",
    ),
    System(
        slug="skeleton-1dcnn", room="scenes", module="scenes/skeleton.py", year=2018, arxiv="1801.02475",
        authors="Yangyang Xu, Lei Wang et al.", parts=("retinue.scenes.EnsemNN",),
        title="Ensemble One-Dimensional Convolution Neural Networks for Skeleton-Based Action Recognition",
        use="Recognise actions from sequences of body joints (Kinect, motion capture), or classify any multivariate time series.",
    ),
    System(
        slug="wide-and-deep", room="theory", module="theory/wide_and_deep.py", year=2022, arxiv="2204.14126", state="ready",
        authors="Adityanarayanan Radhakrishnan, Mikhail Belkin, Caroline Uhler", parts=(
            "retinue.theory.WideDeepClassifier", "retinue.theory.DualActivation", "retinue.theory.optimal_activation",
            "retinue.theory.WideDeepNetwork", "retinue.theory.infinite_networks",
        ),
        title="Wide and Deep Neural Networks Achieve Optimality for Classification",
        use="What would an infinitely wide and deep network predict? A classifier in closed form, without training (NTK kernel).",
    ),
    System(
        slug="nested-dynamics", room="theory", module="theory/nested_dynamics.py", year=2021, arxiv="2111.01297",
        authors="David I. Spivak, Timothy Hosgood", parts=("retinue.theory.GradientLearner", "retinue.theory.Market"),
        title="Deep neural networks as nested dynamical systems",
        use="Build networks whose wiring changes with what flows through it, from typed parts whose laws can be checked.",
    ),
    System(
        slug="geoscience", room="theory", module="theory/geoscience.py", year=2020, arxiv="2006.13311",
        authors="Jesper Sören Dramsch", parts=("retinue.theory.Variogram", "retinue.theory.OrdinaryKriging", "retinue.theory.BlockKFold"),
        title="70 years of machine learning in geoscience in review",
        use="I have point measurements in space (wells, soil, rain): interpolate them with uncertainty (kriging) and validate honestly.",
    ),
)
# fmt: on
