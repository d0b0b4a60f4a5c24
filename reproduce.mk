# The artifacts of the paper's tables and figures as a graph of files. Included by the Makefile.
#
#   make reproduce SCALE=laptop DOMAINS=walker SEEDS="0 1"     Table 1 and 2 of one domain, and its part of Fig. 4
#   make reproduce METHODS="bitagent genrl"                    four domains, zero-shot prompts and Fig. 3, two methods
#   make -n reproduce                                          what would run
#   make plan                                                  what exists, what is missing, how long it takes
#
# Every target is the artifact.json of an artifact. A stage that finds its artifact made the same way dates
# it anew; one whose inputs were made again makes it again (--renew); any other difference is refused.
# They are made in the order of the lists below: what matters most comes first.

SCALE ?= laptop
DOMAINS ?= walker quadruped cheetah stickman
SEEDS ?= 0
METHODS ?= $(TABLE1) $(ABLATIONS) bitagent-no-tamf
BACKBONE ?= $(if $(filter paper,$(SCALE)),internvideo2,offline)
NPROC ?= 1
LAUNCH ?=

MODEL_FREE := iql td3-bc td3
TABLE1 := bitagent genrl wm-clip founder $(MODEL_FREE)
ABLATIONS := ablation-base ablation-mllm ablation-tamf# Table 2, on the walker
TRANSFER := bitagent bitagent-no-tamf genrl wm-clip# Fig. 3, between the bodies that stand, walk and run
ZERO_SHOT := bitagent genrl# prompts that no data are labelled with, on the first seed

TASKS_walker := stand walk run
TASKS_cheetah := run
TASKS_quadruped := stand walk run
TASKS_stickman := stand walk run

NEW_walker := one_foot high_kick lying_down sit_knees lunge_pose flipping
NEW_cheetah := standing lying_down
NEW_quadruped := jump two_legs lie_down
NEW_stickman := one_foot high_kick lying_down legs_up sit_knees lunge_pose headstand boxing hands_up flipping

ifeq ($(SCALE),smoke)
export OMP_NUM_THREADS ?= 1# toy sizes: more threads only wait for each other ...
MAKEFLAGS += -j$(shell nproc || echo 2)# ... so a recipe a core; a -j of the command line wins
endif

HEAVY := $(strip $(LAUNCH) $(BITAGENT))
TRAIN := $(if $(filter-out 1,$(NPROC)),$(strip $(LAUNCH) $(BIN)/torchrun --standalone --nproc-per-node $(NPROC) -m bitagent_cli),$(HEAVY))

# ------------------------------------------------------------------ names; $(1) domain, $(2) method, $(3) seed, $(4) source

root = $(RUNS)/$(1)-$(SCALE)
options = --preset $(1) --scale $(SCALE) --out $(root) --quiet --renew
as = --method $(2) --seed $(3)
datasets = random $(addprefix expert-,$(TASKS_$(1))) branch
data = $(foreach n,$(datasets),$(root)/data/$(n)/artifact.json)
embeddings = $(foreach n,$(datasets),$(root)/embeddings/$(subst /,--,$(BACKBONE))/$(n)/artifact.json)
model = $(root)/model/$(2)-s$(3)/artifact.json
asked = $(TASKS_$(1)) $(if $(and $(filter $(2),$(ZERO_SHOT)),$(filter $(3),$(firstword $(SEEDS)))),$(NEW_$(1)))
policies = $(foreach t,$(asked),$(root)/policy/$(2)-s$(3)/$(t)/artifact.json)
scores = $(foreach t,$(asked),$(root)/evaluation/$(2)-s$(3)/$(t)/artifact.json)

scored = $(filter $(METHODS),$(TABLE1) $(if $(filter walker,$(1)),$(ABLATIONS)))
moved := $(filter $(METHODS),$(TRANSFER))
bodies := $(filter walker quadruped stickman,$(DOMAINS))
sources = $(if $(filter $(1),$(bodies)),$(filter-out $(1),$(bodies)))
label = $(if $(filter-out bitagent,$(2)),$(2)-)transfer-$(4)

domain_scores = $(foreach s,$(SEEDS),$(foreach m,$(scored),$(call scores,$(1),$(m),$(s)))\
  $(foreach m,$(moved),$(foreach o,$(sources),$(call scores,$(1),$(call label,$(1),$(m),$(s),$(o)),$(s)))))
pretrained = $(filter-out $(MODEL_FREE),$(scored)) $(if $(sources),$(filter-out $(scored),$(moved)))
report = $(root)/report/artifact.json
PAPER := $(RUNS)/paper-$(SCALE)/report/artifact.json

.PHONY: reproduce plan targets table
reproduce: $(PAPER) ## every table and figure of the paper (SCALE= DOMAINS= SEEDS= METHODS= LAUNCH= NPROC=)

plan: $(READY) ## what exists, what is missing, and the hours from measured speeds (variables as for reproduce)
	@$(MAKE) -s targets | $(BIN)/python -m bitagent_cli.plan

targets:
	@$(foreach a,$(ARTIFACTS),$(info $(a))):

TABLE_SEEDS ?= 0 1
table: ## Tables 1 and 2 for walker: every baseline and ablation, two seeds (SCALE= TABLE_SEEDS=)
	$(MAKE) reproduce DOMAINS=walker SEEDS="$(TABLE_SEEDS)"

# ------------------------------------------------------------------ rules

# $(1) domain
define domain
$(data) &: | $(READY)
	$(HEAVY) collect $(options)$(if $(filter smoke,$(SCALE)), --workers 1)

$(embeddings) &: $(data)
	$(HEAVY) embed $(options) --backbone $(BACKBONE)

$(report): $(domain_scores)
	$(HEAVY) visualize $(options) --seed $(firstword $(SEEDS))
endef

# $(1) domain, $(2) method, $(3) seed
define pretraining
$(model): $(embeddings)
	$(TRAIN) pretrain $(options) $(as) --set pretrain.backbone=$(BACKBONE)
endef

# $(1) domain, $(2) method, $(3) seed, $(4) task: a model-free method learns from data and embeddings, the others on their model
define policy
$(root)/policy/$(2)-s$(3)/$(4)/artifact.json: $(if $(filter $(2),$(MODEL_FREE)),$(embeddings),$(model))
	$(if $(filter $(2),$(MODEL_FREE)),$(HEAVY),$(TRAIN)) behave $(options) $(as) --task $(4)$(if $(filter $(2),$(MODEL_FREE)), --set pretrain.backbone=$(BACKBONE))

$(root)/evaluation/$(2)-s$(3)/$(4)/artifact.json: $(root)/policy/$(2)-s$(3)/$(4)/artifact.json
	$(HEAVY) evaluate $(options) $(as) --task $(4)
endef

# $(1) target domain, $(2) method, $(3) seed, $(4) source domain, $(5) its label: adapted, learned and scored in one go
define transferred
$(call model,$(1),$(5),$(3)) $(call policies,$(1),$(5),$(3)) $(call scores,$(1),$(5),$(3)) &: \
  $(call model,$(4),$(2),$(3)) $(embeddings)
	$(HEAVY) transfer $(options) $(as) --src $(4) --set pretrain.backbone=$(BACKBONE)
endef

$(foreach d,$(DOMAINS),$(eval $(call domain,$(d))))
$(foreach s,$(SEEDS),$(foreach d,$(DOMAINS),\
  $(foreach m,$(call pretrained,$(d)),$(eval $(call pretraining,$(d),$(m),$(s))))\
  $(foreach m,$(call scored,$(d)),$(foreach t,$(call asked,$(d),$(m),$(s)),$(eval $(call policy,$(d),$(m),$(s),$(t)))))\
  $(foreach m,$(moved),$(foreach o,$(call sources,$(d)),$(eval $(call transferred,$(d),$(m),$(s),$(o),$(call label,$(d),$(m),$(s),$(o))))))))

$(PAPER): $(foreach d,$(DOMAINS),$(call report,$(d)))
	$(BITAGENT) visualize --paper --scale $(SCALE) --out $(RUNS)/paper-$(SCALE) --quiet

# Made first to last; what a killed recipe had finished is whole, so make must not delete it.
ARTIFACTS := $(foreach d,$(DOMAINS),$(call data,$(d)) $(call embeddings,$(d))\
  $(foreach s,$(SEEDS),$(foreach m,$(call pretrained,$(d)),$(call model,$(d),$(m),$(s)))\
    $(foreach m,$(call scored,$(d)),$(call policies,$(d),$(m),$(s)) $(call scores,$(d),$(m),$(s)))\
    $(foreach m,$(moved),$(foreach o,$(call sources,$(d)),$(foreach l,$(call label,$(d),$(m),$(s),$(o)),\
      $(call model,$(d),$(l),$(s)) $(call policies,$(d),$(l),$(s)) $(call scores,$(d),$(l),$(s))))))\
  $(call report,$(d))) $(PAPER)
.PRECIOUS: $(ARTIFACTS)
