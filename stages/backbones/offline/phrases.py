"""The words of the caption grammar: for each domain's concepts, (phrases trained on, phrases kept for testing)."""

from __future__ import annotations

Phrases = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]

BODIES: dict[str, tuple[str, ...]] = {
    "walker": ("robot", "walker", "two-legged robot", "stick figure", "figure", "biped"),
    "stickman": ("stickman", "robot", "humanoid", "man", "person", "figure"),
    "cheetah": ("cheetah", "robot", "animal", "four-legged robot", "creature", "quadruped"),
    "quadruped": ("spider", "robot", "four-legged robot", "quadruped", "creature", "animal"),
}

_WALKER_CLASSES: Phrases = {
    "stand": (
        (
            "standing without walking", "keeping upright", "staying straight on both legs", "holding still while standing", "being motionless on its legs",
            "standing still", "standing upright", "standing on both legs", "standing tall", "staying upright without moving",
            "keeping still on two feet", "holding an upright posture", "remaining upright in place", "standing at rest",
            "standing straight", "standing still with a straight back", "keeping balance on both feet",
            "stopping and standing upright", "waiting on both feet", "staying on both legs", "standing up tall",
            "being upright and still", "=an upright posture", "=a straight upright stance", "=straight and upright",
        ),
        ("standing motionless on two legs", "keep upright in one spot", "standing firmly on both feet", "stay up straight",
         "a motionless upright stance", "stand still on both legs without walking", "remaining straight up without any steps", "a still standing position"),
    ),
    "one_leg": (
        (
            "lifting a foot up", "posing on a single leg", "keeping one foot off the floor", "standing with one foot up", "=a single-leg pose", "=balance on one foot",
            "standing on one leg", "standing on one foot", "balancing on a single leg", "balancing on one foot",
            "lifting one leg while standing", "holding one foot in the air", "raising a foot off the ground",
            "keeping one leg raised", "standing with a knee lifted", "balancing like a flamingo",
            "raising one knee and staying in place", "=a one-legged stance", "=one foot up",
        ),
        ("balancing on one leg", "poised on a single foot", "stand with one leg lifted", "a pose on just one leg", "hold yourself up on one foot", "one leg off the floor, the other straight"),
    ),
    "walk": (
        (
            "stepping along", "going for a walk", "going forward on foot", "taking a walk", "pacing ahead", "=a brisk walk", "=a stroll",
            "walking", "walking forward", "walking fast", "walking quickly", "walking at a steady pace", "walking slowly",
            "strolling forward", "taking steps forward", "stepping forward", "marching forward", "walking ahead",
            "moving forward step by step", "striding forward", "walking with a clean gait", "walking briskly",
            "ambling forward", "walking upright", "=a walk", "=a walking gait", "=a fast walk",
        ),
        ("walking onward at a good pace", "take a brisk walk", "strolling along", "a clean walking motion",
         "pacing forward step after step", "walk ahead at an easy pace", "moving along on foot"),
    ),
    "run": (
        (
            "moving very fast on foot", "speeding forward", "racing", "bolting forward", "running at full tilt", "=a race", "=a dash",
            "running", "running forward", "running fast", "running quickly", "sprinting", "racing ahead", "dashing forward",
            "running at high speed", "rushing forward on foot", "sprinting forward", "running as fast as possible",
            "running with a clean gait", "running with long strides", "hurtling forward", "=a run", "=a running gait",
            "=a sprint", "=a fast run",
        ),
        ("sprinting ahead", "run at full speed", "dashing ahead very quickly", "a clean fast running motion", "racing onward", "run onward as quickly as you can", "a very quick run to the front"),
    ),
    "backward": (
        (
            "moving to the rear", "walking away backwards", "stepping to the rear", "going in the backward direction", "pulling back", "travelling backwards", "=a retreat", "=backward steps",
            "walking backward", "walking backwards", "stepping backward", "moving backward", "going back", "backing up",
            "retreating", "reversing on foot", "taking steps back", "walking back", "moving in reverse",
            "=a backward walk", "=steps to the rear",
        ),
        ("walking in reverse", "step backwards", "backing away", "a walk in the backward direction", "walk rearwards", "move back step by step"),
    ),
    "kneel": (
        (
            "putting both knees on the ground", "dropping to the knees", "being down on the knees", "squatting on the knees", "=a pose on the knees", "=a prayer on the knees",
            "kneeling", "kneeling on the floor", "sitting on its knees", "resting on the knees", "kneeling down",
            "being on its knees", "sitting back on the heels", "staying on both knees", "praying on the knees",
            "going down on the knees", "=a kneeling pose", "=knees on the floor",
        ),
        ("kneel on the ground", "sit on your knees", "down on both knees", "a pose with the knees on the ground", "stay on your knees", "lower yourself to a kneel"),
    ),
    "on_back": (
        (
            "lying with the belly up", "resting with the face to the sky", "facing the sky on the floor", "reclining on the back", "lying backwards on the floor", "=a face-up rest", "=the back on the floor",
            "lying on its back", "lying face up", "resting on the back", "lying flat on the back", "lying with the chest up",
            "sleeping on the back", "lying on the floor looking at the sky", "staying down on its back",
            "sprawling on the back", "=flat on the back", "=belly up",
        ),
        ("lying supine", "lie on your back", "stretched out on its back", "a body resting face up", "rest on the floor with the face toward the sky", "lying flat, belly upward"),
    ),
    "on_front": (
        (
            "lying with the face to the floor", "resting face down", "lying with the belly on the floor", "facing the floor while lying", "sleeping face down", "=a face-down rest", "=the chest on the floor", "=the stomach on the floor",
            "lying on its front", "lying face down", "lying on the stomach", "resting on its belly", "lying on the chest",
            "lying flat with the face on the floor", "staying down on the belly", "sprawling face down",
            "sleeping on the stomach", "=flat on the belly", "=face down on the floor",
        ),
        ("lying prone", "lie on your stomach", "stretched out face down", "a body resting on its chest", "rest on the floor with the face downward", "lying flat on the tummy"),
    ),
    "upside_down": (
        (
            "hanging head down", "holding the feet in the air with the head down", "standing on the hands", "being inverted", "pointing the legs at the sky", "having the feet above the head", "=feet up, head on the floor", "=an upside-down body", "=legs over the head",
            "standing on its head", "doing a headstand", "being upside down", "balancing on the head", "turning upside down",
            "holding the legs above the head", "resting on the head with the legs up", "=a headstand", "=head down, legs up",
            "=an inverted pose",
        ),
        ("stand on your head", "inverted with the feet in the air", "a handstand pose", "held upside down", "put the head on the floor and the feet up", "turned over with legs above the body"),
    ),
    "flip": (
        (
            "turning over in the air", "rolling head over heels", "turning a cartwheel", "spinning around", "doing a roll", "whirling the body around", "=a quick roll of the whole body", "=a cartwheel",
            "doing a flip", "doing backflips", "tumbling", "somersaulting", "rolling over", "flipping over",
            "spinning through the air", "doing a somersault", "tumbling head over heels", "rotating quickly",
            "=a flip", "=a backflip", "=a somersault",
        ),
        ("do a front flip", "turning a somersault", "whirling around head over heels", "a fast roll", "flip the whole body over", "spin the body in a complete turn"),
    ),
}  # fmt: skip

_BIPED_ATTRIBUTES: Phrases = {
    "lying": (
        ("lying down", "lying on the floor", "lying horizontally", "resting flat on the ground", "staying on the floor",
         "=flat on the ground"),
        ("stretched out on the ground",),
    ),
    "on_feet": (("being on its feet", "staying on its feet", "keeping the body up", "=on its feet"), ("up on its legs",)),
    "crouch": (
        ("crouching", "squatting", "bending both knees", "crouching low on the feet", "=a squat", "=bent knees"),
        ("squatting down",),
    ),
    "falling": (
        ("falling down", "falling over", "losing balance", "toppling over", "collapsing", "dropping to the floor", "=a fall"),
        ("tripping and falling",),
    ),
    "lean_forward": (("leaning forward", "bending forward", "bowing", "=a forward lean"), ("bent over forward",)),
    "lean_back": (("leaning back", "bending backward", "leaning backwards", "=a backward lean"), ("bent over backwards",)),
    "jump": (
        ("jumping", "leaping up", "hopping", "jumping into the air", "=a jump", "=both feet off the ground"),
        ("a leap into the air",),
    ),
    "high_kick": (("kicking high", "standing and kicking", "raising a leg very high", "=a high kick"), ("kick in the air",)),
    "lunge": (("doing the splits", "lunging", "standing with the legs wide apart", "=a lunge", "=a lunge pose"),
              ("a wide lunge stance",)),
    "still": (("being still", "staying motionless", "=not moving at all", "=no motion"), ("holding perfectly still",)),
    "struggle": (
        ("struggling on the floor", "kicking on the ground", "wriggling on the floor", "flailing the legs on the ground"),
        ("thrashing on the floor",),
    ),
    "forward": (("moving forward", "going forward", "=forward motion"), ("travelling forward",)),
    "fast": (("moving fast", "moving at high speed", "=high speed"), ("rapid motion",)),
}  # fmt: skip

_STICKMAN_ATTRIBUTES: Phrases = {
    "hands_up": (
        ("standing with the hands up", "raising both arms", "holding the hands over the head", "=hands up", "=arms in the air"),
        ("lift both hands high",),
    ),
    "punch": (
        ("punching", "boxing", "swinging the arms fast", "hitting with the fists", "=a punch"),
        ("throw punches",),
    ),
    "legs_up": (
        ("lying with the legs up", "raising the feet while lying", "lying down with feet up", "=legs in the air"),
        ("resting with both legs raised",),
    ),
}  # fmt: skip

_CHEETAH: Phrases = {
    "stand": (
        ("standing still", "standing on four legs", "staying in place on its feet", "standing at rest", "waiting on all fours",
         "standing without moving", "remaining in place", "stopping and standing", "=a resting stance", "=a still stance"),
        ("stand motionless on all fours", "keep in one spot on its feet", "quietly standing"),
    ),
    "walk": (
        ("walking", "walking forward", "walking slowly", "trotting forward", "jogging", "moving forward at a slow pace",
         "taking steps forward", "ambling forward", "walking on four legs", "=a walk", "=a slow trot"),
        ("trot ahead slowly", "strolling along", "a gentle walking gait"),
    ),
    "run": (
        ("running", "running forward", "running fast", "galloping", "running on four legs", "running like an animal",
         "racing ahead", "running quickly", "running like a dog", "dashing forward", "running like a cheetah", "=a run",
         "=a gallop", "=a running gait"),
        ("gallop ahead", "run onward", "a fast four-legged run", "bounding forward quickly"),
    ),
    "backward": (
        ("walking backward", "moving backward", "running backwards", "backing up", "stepping back", "reversing",
         "going back", "retreating", "=backward motion"),
        ("move in reverse", "backing away", "going backwards"),
    ),
    "belly": (
        ("lying down", "lying on its belly", "lying on the floor", "resting on the belly", "crouching on the ground",
         "sleeping on the floor", "=belly on the floor", "=flat on the belly"),
        ("lie flat on the ground", "lying prone", "stretched out on the floor"),
    ),
    "upside_down": (
        ("lying on its back", "being upside down", "lying with the legs in the air", "turning upside down",
         "resting on the back", "=legs up, back down", "=belly up"),
        ("lie on your back", "rolled onto its back", "inverted with the feet in the air"),
    ),
    "hind_legs": (
        ("standing on its hind legs", "standing like a human", "rearing up", "standing upright on the back legs",
         "raising the front legs", "standing on two legs", "=front legs up", "=a rearing pose"),
        ("stand on the back feet like a person", "upright on the hind legs", "a reared-up stance"),
    ),
    "nose": (
        ("standing on its head", "standing on the front legs", "standing on its nose", "raising the back legs",
         "being head down", "diving onto the nose", "=back legs up", "=a headstand"),
        ("balance on the front feet", "head down with the rear in the air", "a nose stand"),
    ),
    "flip": (
        ("doing a flip", "flipping over", "tumbling", "somersaulting", "doing backflips", "rolling over",
         "spinning through the air", "=a flip", "=a somersault"),
        ("do a front flip", "tumbling head over heels", "a fast roll"),
    ),
    "jump": (
        (
            "jumping",
            "leaping",
            "jumping into the air",
            "leaping high off the ground",
            "springing up",
            "jumping with all feet off the ground",
            "hopping up",
            "=a jump",
            "=a big leap",
        ),
        ("a leap into the air", "jump up high", "bouncing off the ground"),
    ),
    "sprint": (
        ("sprinting", "running at top speed", "running as fast as possible", "sprinting forward", "galloping at full speed",
         "hurtling forward", "=a sprint", "=top speed"),
        ("sprint ahead", "racing at maximum speed", "a full-speed gallop"),
    ),
    "on_feet": (("being on its feet", "staying on all four feet", "=on its feet"), ("up on its legs",)),
    "still": (("being still", "staying motionless", "=not moving at all", "=no motion"), ("holding perfectly still",)),
    "forward": (("moving forward", "going forward", "=forward motion"), ("travelling forward",)),
    "fast": (("moving fast", "moving at high speed", "=high speed"), ("rapid motion",)),
}  # fmt: skip

_QUADRUPED: Phrases = {
    "stand": (
        ("standing still", "standing on four legs", "standing upright", "staying in place on its feet", "standing at rest",
         "standing without moving", "remaining in place", "stopping and standing", "=a resting stance", "=a still stance"),
        ("stand motionless on all fours", "keep in one spot on its feet", "quietly standing"),
    ),
    "walk": (
        ("walking", "walking forward", "walking slowly", "walking fast", "walking quickly", "taking steps forward",
         "ambling forward", "walking on four legs", "walking at a steady pace", "crawling forward", "=a walk",
         "=a walking gait"),
        ("walk ahead briskly", "strolling along", "a four-legged walk"),
    ),
    "run": (
        ("running", "running forward", "running fast", "galloping", "running on four legs", "racing ahead", "running quickly",
         "dashing forward", "sprinting", "running as fast as possible", "=a run", "=a gallop"),
        ("run ahead at full speed", "sprinting forward", "a fast four-legged run"),
    ),
    "backward": (
        ("walking backward", "moving backward", "backing up", "stepping back", "reversing", "going back", "retreating",
         "=backward motion"),
        ("move in reverse", "backing away", "walking backwards"),
    ),
    "sideways": (
        ("walking sideways", "moving sideways", "stepping to the side", "walking like a crab", "moving to the side",
         "=a sideways walk"),
        ("crab walking", "sidestepping", "shift sideways"),
    ),
    "turn": (
        ("turning around", "turning in place", "rotating in place", "spinning on the spot", "turning around its own axis",
         "=a turn in place"),
        ("rotate on the spot", "spinning around in place", "a turn about itself"),
    ),
    "belly": (
        ("lying down", "lying on its belly", "lying on the floor", "resting on the belly", "crouching on the ground",
         "sitting on the floor", "=belly on the floor", "=flat on the belly"),
        ("lie flat on the ground", "stretched out on the floor", "resting low on the floor"),
    ),
    "upside_down": (
        ("lying on its back", "being upside down", "lying with the legs in the air", "turning upside down",
         "resting on the back", "=legs up, back down", "=belly up"),
        ("lie on your back", "rolled onto its back", "inverted with the feet in the air"),
    ),
    "on_side": (
        ("lying on its side", "tipping over sideways", "resting on one side", "leaning on its side", "=on its side"),
        ("lie on one flank", "tipped over to the side", "a body lying sideways"),
    ),
    "two_legs": (
        ("standing on two legs", "standing on its hind legs", "rearing up", "raising the front legs",
         "standing like a human", "=front legs up", "=on two legs"),
        ("stand on the back feet", "upright on the hind legs", "a reared-up stance"),
    ),
    "on_feet": (("being on its feet", "staying on all four feet", "=on its feet"), ("up on its legs",)),
    "jump": (("jumping", "leaping", "jumping into the air", "hopping", "=a jump"), ("a leap into the air",)),
    "still": (("being still", "staying motionless", "=not moving at all", "=no motion"), ("holding perfectly still",)),
    "forward": (("moving forward", "going forward", "=forward motion"), ("travelling forward",)),
    "fast": (("moving fast", "moving at high speed", "=high speed"), ("rapid motion",)),
    "tumble": (("tumbling", "rolling over", "flipping over", "falling over", "=a tumble"), ("going head over heels",)),
}  # fmt: skip

PHRASES: dict[str, Phrases] = {
    "walker": _WALKER_CLASSES | _BIPED_ATTRIBUTES,
    "stickman": _WALKER_CLASSES | _BIPED_ATTRIBUTES | _STICKMAN_ATTRIBUTES,
    "cheetah": _CHEETAH,
    "quadruped": _QUADRUPED,
}
